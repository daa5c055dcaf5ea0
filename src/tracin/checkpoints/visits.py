"""Which training examples each optimizer step has visited, and the random state it began with.

A Recorder writes these files to `visits` in its folder, each only ever added to:

    visits.json      the format, and whether ids are numbers or text
    ids.i64          int64: all ids in their order; for text, ids.jsonl, one line per micro-batch
    batches.i64      int64 per micro-batch: how many ids (for text: bytes) come up to its end
    steps.i64        5 x int64 per step: how many micro-batches come up to its end, and which states
                     of random.raw it began with: CPU, CUDA, Python, NumPy
    random.raw       the states; one is written only where it differs from the one before
    random_ends.i64  int64 per state: how many bytes come up to its end

Numbers are little-endian. The Recorder's record lists how long each file is and its checksum at
that length, so what a killed process wrote beyond it does not count.
"""

import json
import os
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tracin.checkpoints.record import has_record, read_record
from tracin.errors import CheckpointError
from tracin.files import checked_fields, crc_of, flush, read_sealed, replacing, sealed, text_of
from tracin.plain_text import a_kind
from tracin.random_state import RandomState

FOLDER, ABOUT, FORMAT = "visits", "visits.json", 2
STEPS, BATCHES, RANDOM, RANDOM_ENDS = "steps.i64", "batches.i64", "random.raw", "random_ends.i64"
IDS = {"int": "ids.i64", "text": "ids.jsonl"}
INT64 = np.dtype("<i8")
GENERATORS = tuple(field.name for field in fields(RandomState))
ROW = 1 + len(GENERATORS)
BUFFER_BYTES = 1 << 18  # collected in memory before they are appended to a file


@dataclass(frozen=True, eq=False)
class Visits:
    """The ids that were given to `Recorder.batch`, step by step, read from the disk on demand.

    Step t, counted from 0, takes the weights after t steps to those after t + 1. The length is
    the number of steps.

    Attributes:
        folder: The folder `visits` within the recorder's.
        kind: "int" or "text", what the ids are.
        rows: For each step, how many micro-batches come up to its end, and its random states.
    """

    folder: Path
    kind: str
    rows: NDArray[np.int64]

    @classmethod
    def open(cls, folder: str | Path) -> "Visits":
        """The visits in a Recorder's folder, as far as its step log goes.

        Raises:
            CheckpointError: No Recorder wrote there, it was given no ids, or a file is damaged.
        """
        folder = Path(folder).expanduser()
        record = read_record(folder) if has_record(folder) else None
        if record is None or not record.visits:
            raise CheckpointError(
                f"{folder} has no visits: they are written where a tracin.Recorder trains and "
                "recorder.batch(ids) is called before each step. Give such a Recorder's folder."
            )
        return cls.within(folder / FOLDER, record.visits, len(record.log))

    @classmethod
    def within(cls, folder: Path, listed: Sequence[tuple[str, int, str]], limit: int) -> "Visits":
        """At most `limit` steps in the folder `visits` itself.

        Args:
            folder: The folder.
            listed: The name, length and checksum of each file, as the record has them.
            limit: How many steps to take.

        Raises:
            CheckpointError: A file is missing, damaged or another than the record lists.
        """
        for name, size, checksum in listed:
            _check_file(folder / name, size, checksum)
        sizes = {name: size for name, size, _ in listed}
        try:
            (kind,) = checked_fields(read_sealed(folder / ABOUT, FORMAT), ids=str)
            if kind not in IDS or sizes.keys() != {STEPS, BATCHES, IDS[kind], RANDOM, RANDOM_ENDS}:
                raise ValueError(f"ids of the kind {kind!r} do not lie in {sorted(sizes)}")
            whole = sizes[STEPS] // (ROW * INT64.itemsize)
            rows = read_numbers(folder / STEPS, 0, whole * ROW).reshape(-1, ROW)
            _refuse_unsound(folder, kind, rows, sizes)
        except (ValueError, IndexError) as error:
            raise CheckpointError(
                f"{folder} is not as a Recorder writes it ({error}). Restore it from a backup."
            ) from error
        return cls(folder, kind, rows[:limit])

    def __len__(self) -> int:
        return len(self.rows)

    def ids(self, step: int) -> list[list[Any]]:
        """The ids of one step, a list for each micro-batch.

        Raises:
            CheckpointError: There is no such step.
        """
        last = int(self._row(step)[0])
        first = int(self.rows[step - 1][0]) if step else 0
        bounds = bounds_of(self.folder / BATCHES, first, last)
        return [self._between(start, stop) for start, stop in pairwise(bounds)]

    def random_state(self, step: int) -> RandomState:
        """The random state when the first ids of a step were given.

        Raises:
            CheckpointError: There is no such step.
        """
        return RandomState(*(self._blob(int(place)) for place in self._row(step)[1:]))

    def sizes(self) -> dict[str, int]:
        """The length of each file, in bytes, if it held these steps and nothing more."""
        if not len(self):
            return dict.fromkeys((STEPS, BATCHES, IDS[self.kind], RANDOM, RANDOM_ENDS), 0)
        batches, states = int(self.rows[-1][0]), int(max(self.rows[-1][1:])) + 1
        unit = INT64.itemsize if self.kind == "int" else 1
        return {
            STEPS: len(self) * ROW * INT64.itemsize,
            BATCHES: batches * INT64.itemsize,
            IDS[self.kind]: bounds_of(self.folder / BATCHES, batches, batches)[0] * unit,
            RANDOM: bounds_of(self.folder / RANDOM_ENDS, states, states)[0],
            RANDOM_ENDS: states * INT64.itemsize,
        }

    def _row(self, step: int) -> NDArray[np.int64]:
        """What there is on one step."""
        if not 0 <= step < len(self):
            raise CheckpointError(
                f"{self.folder} has the visits of {len(self)} steps, counted from 0; step {step} "
                "is none of them."
            )
        return self.rows[step]

    def _between(self, start: int, stop: int) -> list[Any]:
        """The ids of one micro-batch."""
        path = self.folder / IDS[self.kind]
        if self.kind == "int":
            start, stop = start * INT64.itemsize, stop * INT64.itemsize
        held = read_between(path, start, stop)
        if self.kind == "int":
            return np.frombuffer(held, INT64).tolist()
        try:
            ids = json.loads(held)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} holds no ids from byte {start} on ({error}).") from error
        return list(ids)

    def _blob(self, place: int) -> bytes:
        """One state of random.raw."""
        start, stop = bounds_of(self.folder / RANDOM_ENDS, place, place + 1)
        return read_between(self.folder / RANDOM, start, stop)


def read_between(path: Path, start: int, stop: int) -> bytes:
    """A part of a file."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def _check_file(path: Path, size: int, checksum: str) -> None:
    """Compare what the record lists of a file with what is there."""
    try:
        held = path.stat().st_size
        found = text_of(crc_of(path, size)) if held >= size else "none"
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Restore it from a backup."
        ) from error
    if found != checksum:
        raise CheckpointError(
            f"{path} is truncated or damaged: its first {size} bytes have the checksum {found} "
            f"where {checksum} was written. Restore it from a backup."
        )


def _refuse_unsound(
    folder: Path, kind: str, rows: NDArray[np.int64], sizes: dict[str, int]
) -> None:
    """Refuse numbers that point outside of the files.

    Raises:
        ValueError: There are such.
    """
    unit = INT64.itemsize
    batches = read_numbers(folder / BATCHES, 0, sizes[BATCHES] // unit)
    states = read_numbers(folder / RANDOM_ENDS, 0, sizes[RANDOM_ENDS] // unit)
    ids = sizes[IDS[kind]] // (unit if kind == "int" else 1)
    ends = ((rows[:, 0], len(batches)), (batches, ids), (states, sizes[RANDOM]))
    for held, limit in ends:
        is_within = not len(held) or (held[0] >= 0 and held[-1] <= limit)
        if not is_within or bool((np.diff(held) < 0).any()):
            raise ValueError("a step points outside of the files")
    if bool((rows[:, 1:] < 0).any() or (rows[:, 1:] >= max(1, len(states))).any()):
        raise ValueError("a step points to a random state that is not there")


def read_numbers(path: Path, start: int, stop: int) -> NDArray[np.int64]:
    """Some of the numbers in a file."""
    # Not memory-mapped: a Recorder that resumes cuts its files, and a map would crash its reader.
    held = read_between(path, start * INT64.itemsize, stop * INT64.itemsize)
    return np.frombuffer(held, INT64, len(held) // INT64.itemsize)


def bounds_of(path: Path, first: int, last: int) -> list[int]:
    """Where each of the parts `first` to `last - 1` begins, and the last one ends.

    Raises:
        IndexError: The file of their ends is too short.
    """
    ends = (
        [0, *read_numbers(path, 0, last).tolist()]
        if first == 0
        else read_numbers(path, first - 1, last)
    )
    if len(ends) != last - first + 1:
        raise IndexError(f"{path} ends before part {last}")
    return [int(end) for end in ends]


class VisitLog:
    """Takes the ids of one step after the other, and appends them to the files of `visits`.

    What an earlier run has written after its last checkpoint is cut off before the first write.

    Attributes:
        steps: How many steps have ids.

    Args:
        folder: The folder `visits`; made with the first step that has ids.
        listed: What the record of an earlier run lists of its files.
        step: How many steps were taken up to the checkpoint that training resumes from.
    """

    def __init__(self, folder: Path, listed: Sequence[tuple[str, int, str]], step: int) -> None:
        self._folder = folder
        self._found = Visits.within(folder, listed, step) if listed else None
        self.steps = len(self._found) if self._found is not None else 0
        self._kind = self._found.kind if self._found is not None and self.steps else ""
        self._pending: list[tuple[str, int, bytes]] = []
        self._state: RandomState | None = None
        self._files: dict[str, Growing] = {}
        self._batches = self._ids = 0
        self._written = dict.fromkeys(GENERATORS, b"\0")  # equal to no state
        self._places = dict.fromkeys(GENERATORS, 0)

    @property
    def has_pending(self) -> bool:
        """Whether ids were given since the last step."""
        return bool(self._pending)

    def add(self, ids: Any) -> None:
        """Note a micro-batch of the coming step."""
        batch = encoded(ids)
        kind = self._pending[0][0] if self._pending else self._kind
        if kind and batch[0] != kind:
            words = {"int": "whole numbers", "text": "strings"}
            raise CheckpointError(
                f"recorder.batch(ids) was given {words[kind]} so far, and now "
                f"{words[batch[0]]}: ids of one run are all of one kind. Give the same to both."
            )
        if not self._pending:
            self._state = RandomState.now()
        self._pending.append(batch)

    def drop(self) -> None:
        """Forget the ids of a step that is not taken."""
        self._pending.clear()

    def check(self, step: int) -> None:
        """Refuse a step without ids where others have some.

        Raises:
            CheckpointError: This is such a step, or the first that has any.
        """
        with_ids, without = (step, self.steps) if self._pending else (step - 1, step)
        if self.steps != step if self._pending else self.steps:
            raise CheckpointError(
                f"recorder.batch(ids) was called for step {with_ids} but not for step {without}: "
                "call it before each step, or never."
            )

    def take(self) -> None:
        """The step was taken: its ids are the pending ones."""
        if not self._pending or self._state is None:
            return
        self._open()
        for _, count, content in self._pending:
            self._ids += count
            self._files[IDS[self._kind]].add(content)
            self._files[BATCHES].add(self._ids.to_bytes(8, "little"))
        self._batches += len(self._pending)
        for name in GENERATORS:
            self._take_state(name, getattr(self._state, name))
        row = np.array([self._batches, *self._places.values()], INT64)
        self._files[STEPS].add(row.tobytes())
        self.steps += 1
        self._pending.clear()

    def listed(self) -> tuple[tuple[str, int, str], ...]:
        """The name, length and checksum of each file, as of the last flush."""
        return tuple((name, file.size, file.checksum) for name, file in self._files.items())

    def flush(self) -> None:
        """Wait until all steps so far are on the disk."""
        if self._found is not None:
            self._open()
        for file in self._files.values():
            file.flush()

    def _take_state(self, name: str, state: bytes) -> None:
        """Write down one generator's state, if it is not the one written last."""
        if state == self._written[name]:
            return
        states, ends = self._files[RANDOM], self._files[RANDOM_ENDS]
        states.add(state)
        ends.add(states.size.to_bytes(8, "little"))
        self._written[name] = state
        self._places[name] = ends.size // INT64.itemsize - 1

    def _open(self) -> None:
        """Bring the files to where the last checkpoint left them, once."""
        if self._files:
            return
        found = self._found
        self._kind = self._kind or (self._pending[0][0] if self._pending else "int")
        self._folder.mkdir(exist_ok=True)
        if found is not None and len(found):
            sizes = found.sizes()
            last = found.random_state(len(found) - 1)
            self._written = {name: getattr(last, name) for name in GENERATORS}
            self._places = dict(zip(GENERATORS, map(int, found.rows[-1][1:]), strict=True))
            self._batches = int(found.rows[-1][0])
            unit = INT64.itemsize if self._kind == "int" else 1
            self._ids = sizes[IDS[self._kind]] // unit
        else:
            sizes = dict.fromkeys((STEPS, BATCHES, IDS[self._kind], RANDOM, RANDOM_ENDS), 0)
            for name in IDS.values():
                (self._folder / name).unlink(missing_ok=True)
            with replacing(self._folder / ABOUT) as unfinished:
                content = {"format": FORMAT, "ids": self._kind}
                unfinished.write_text(sealed(content), encoding="utf-8")
        self._found = None
        self._files = {name: Growing(self._folder / name, size) for name, size in sizes.items()}
        if os.name == "posix":
            flush(self._folder)


class Growing:
    """A file that is appended to in large pieces, and not held open between them.

    Attributes:
        size: Its length in bytes, with what is held back.

    Args:
        path: The file; what it has beyond `size` is cut off.
        size: Its length in bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self.size = path, size
        self._held = bytearray()
        path.touch()
        os.truncate(path, size)
        self._crc = crc_of(path, size)

    @property
    def checksum(self) -> str:
        """That of all of it."""
        return text_of(self._crc)

    def add(self, content: bytes) -> None:
        """Append something."""
        self._crc = zlib.crc32(content, self._crc)
        self._held += content
        self.size += len(content)
        if len(self._held) > BUFFER_BYTES:
            self._write()

    def flush(self) -> None:
        """Wait until all of it is on the disk."""
        self._write()
        flush(self._path)

    def _write(self) -> None:
        if self._held:
            with self._path.open("ab") as file:
                file.write(self._held)
            self._held.clear()


def encoded(ids: Any) -> tuple[str, int, bytes]:
    """Ids as they stand in a file: their kind, how far they move its index, and their bytes.

    Raises:
        CheckpointError: They are neither whole numbers nor strings, or there are none.
    """
    if isinstance(ids, Tensor):
        ids = ids.tolist() if ids.is_floating_point() else ids.detach().cpu().numpy()
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) < 1:
        raise CheckpointError(
            "recorder.batch(ids) takes the ids of one micro-batch, as a list, a tensor or an "
            f"array; {a_kind(ids)} was given. For a single example, pass [id]."
        )
    held = ids if isinstance(ids, np.ndarray | list) else list(ids)
    if len(held) and isinstance(held[0], str) and all(isinstance(one, str) for one in held):
        line = json.dumps([str(one) for one in held]).encode() + b"\n"
        return "text", len(line), line
    try:
        # From a list, `array` takes only whole numbers of 64 bits, and booleans.
        numbers = held if isinstance(held, np.ndarray) else np.frombuffer(array("q", held), "=i8")
        is_whole = numbers.dtype.kind in "iu" and numbers.ndim == 1 and len(numbers) > 0
        is_whole = is_whole and not isinstance(held[0], bool | np.bool_)
    except (ValueError, TypeError, OverflowError):
        numbers, is_whole = np.zeros(0), False
    if not is_whole or (numbers.dtype == np.uint64 and numbers.max() > np.iinfo(INT64).max):
        raise CheckpointError(
            "recorder.batch(ids) takes a flat list of whole numbers (of 64 bits) or of strings, at "
            f"least one; {shortened(held)} was given."
        )
    return "int", len(numbers), numbers.astype(INT64, copy=False).tobytes()


def shortened(given: Any) -> str:
    """What was given, in at most a line."""
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."
