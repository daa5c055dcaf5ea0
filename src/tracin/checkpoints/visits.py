"""Which training examples each optimizer step has visited, and the random state it began with.

At each save a Recorder writes the steps since the last one to a file of their own in its folder
`visits`, named after them, such as `00000120-00000240.safetensors`:

    ids          int64: all ids in their order; for text, the bytes of a JSON list
    batches      int64 per micro-batch: how many ids come up to its end
    steps        5 x int64 per step: how many micro-batches come up to its end, and which states
                 it began with: CPU, CUDA, Python, NumPy
    random       the states, as bytes; one is written only where it differs from the one before
    random_ends  int64 per state: how many bytes come up to its end

The Recorder's record lists the files and their checksums: what it does not list does not count.
"""

import json
import re
import reprlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracin.checkpoints.readers.safetensors import check_seal, read_safetensors, write_safetensors
from tracin.checkpoints.record import has_record, read_record
from tracin.errors import CheckpointError
from tracin.files import Stamp, stamp_of
from tracin.plain_text import a_kind
from tracin.random_state import RandomState

FOLDER = "visits"
GENERATORS = tuple(field.name for field in fields(RandomState))
MOST_BYTES = 1 << 26  # of ids and random states that are held until they are written
_NAME = re.compile(r"(\d{8,12})-(\d{8,12})\.safetensors")
Listed = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Visits:
    """The ids that were given to `Recorder.batch`, step by step, read from the disk on demand.

    Step t, counted from 0, takes the weights after t steps to those after t + 1. The length is
    the number of steps.

    Attributes:
        folder: The folder `visits` within the recorder's.
        parts: The steps of each file, one part after the other.
    """

    folder: Path
    parts: tuple[range, ...]

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
    def within(cls, folder: Path, listed: Sequence[Listed], limit: int) -> "Visits":
        """At most `limit` steps in the folder `visits` itself.

        Args:
            folder: The folder.
            listed: The name and checksum of each file, as the record has them.
            limit: How many steps to take.

        Raises:
            CheckpointError: A file is missing, damaged or another than the record lists.
        """
        parts: list[range] = []
        for name, checksum in listed:
            found = _NAME.fullmatch(name)
            steps = range(*map(int, found.groups())) if found else range(0)
            if not steps or steps.start != (parts[-1].stop if parts else 0):
                raise CheckpointError(
                    f"{folder} has no file of visits {name!r} after "
                    f"{len(parts)} others: another release of tracin wrote its record, or it was "
                    "changed by hand. Read it with that release, or restore it from a backup."
                )
            if steps.stop > limit:
                break
            check_seal(folder / name, checksum)
            parts.append(steps)
        return cls(folder, tuple(parts))

    def __len__(self) -> int:
        return self.parts[-1].stop if self.parts else 0

    def ids(self, step: int) -> list[list[Any]]:
        """The ids of one step, a list for each micro-batch.

        Raises:
            CheckpointError: There is no such step.
        """
        part, at = self._found(step)
        first, last = part.steps[at - 1, 0] if at else 0, part.steps[at, 0]
        return [part.ids_of(batch) for batch in range(first, last)]

    def random_state(self, step: int) -> RandomState:
        """The random state when the first ids of a step were given.

        Raises:
            CheckpointError: There is no such step.
        """
        part, at = self._found(step)
        return RandomState(*map(part.state, part.steps[at, 1:].tolist()))

    def _found(self, step: int) -> tuple["_Part", int]:
        """The file that has a step, and its place there."""
        for steps in self.parts:
            if step in steps:
                path = self.folder / _name_of(steps)
                return _part_at(path, stamp_of([path])), step - steps.start
        raise CheckpointError(
            f"{self.folder} has the visits of {len(self)} steps, counted from 0; step {step} is "
            "none of them."
        )


@dataclass(frozen=True)
class _Part:
    """The steps of one file."""

    ids: list[Any]
    batches: NDArray[np.int64]
    steps: NDArray[np.int64]
    random: bytes
    random_ends: NDArray[np.int64]

    def ids_of(self, batch: int) -> list[Any]:
        return self.ids[self.batches[batch - 1] if batch else 0 : self.batches[batch]]

    def state(self, place: int) -> bytes:
        ends = self.random_ends
        return self.random[ends[place - 1] if place else 0 : ends[place]]


# A replay asks for one step after the other.
@lru_cache(maxsize=1)
def _part_at(path: Path, stamp: Stamp) -> _Part:
    """A file, read again when its stamp is another."""
    held = {name: one.numpy() for name, one in read_safetensors(path).items()}
    ids = held["ids"]
    return _Part(
        json.loads(ids.tobytes()) if ids.dtype == np.uint8 else ids.tolist(),
        held["batches"],
        held["steps"],
        held["random"].tobytes(),
        held["random_ends"],
    )


def _name_of(steps: range) -> str:
    return f"{steps.start:08d}-{steps.stop:08d}.safetensors"


class VisitLog:
    """Takes the ids of one step after the other, and writes them at each save.

    What an earlier run has written after its last checkpoint is replaced or deleted.

    Attributes:
        steps: How many steps have ids.

    Args:
        folder: The folder `visits`; made with the first step that has ids.
        listed: What the record of an earlier run lists of its files.
        step: How many steps were taken up to the checkpoint that training resumes from.
    """

    def __init__(self, folder: Path, listed: Sequence[Listed], step: int) -> None:
        self._folder = folder
        found = Visits.within(folder, listed, step)
        self.steps = self._written = len(found)
        self._listed = list(listed[: len(found.parts)])
        self._is_text: bool | None = None
        if found.parts:
            self._is_text = isinstance(found.ids(len(found) - 1)[0][0], str)
        self._pending: list[NDArray[np.int64] | list[str]] = []
        self._state: RandomState | None = None
        self._empty()

    @property
    def has_pending(self) -> bool:
        """Whether ids were given since the last step."""
        return bool(self._pending)

    def add(self, ids: Any) -> None:
        """Note a micro-batch of the coming step."""
        batch = ids_of_batch(ids)
        is_text = isinstance(batch, list)
        if self._is_text not in (None, is_text):
            words = ("strings", "whole numbers") if self._is_text else ("whole numbers", "strings")
            raise CheckpointError(
                f"recorder.batch(ids) was given {words[0]} so far, and now {words[1]}: ids of one "
                "run are all of one kind. Give the same to both."
            )
        if not self._pending:
            self._state = RandomState.now()
        self._is_text = is_text
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
        for ids in self._pending:
            self._ids.append(ids)
            self._batches.append(len(ids) + (self._batches[-1] if self._batches else 0))
            self._bytes += 8 * len(ids)
        for name in GENERATORS:
            self._take_state(name, getattr(self._state, name))
        self._rows.append([len(self._batches), *self._places.values()])
        self.steps += 1
        self._pending.clear()
        if self._bytes > MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the steps since the last time, and wait until they are on the disk."""
        steps = range(self._written, self.steps)
        if not steps:
            return
        if self._is_text:
            text = json.dumps([str(one) for ids in self._ids for one in ids])
            ids = np.frombuffer(bytearray(text.encode()), np.uint8)
        else:
            ids = np.concatenate(self._ids, dtype=np.int64)
        held = {
            "ids": ids,
            "batches": np.array(self._batches),
            "steps": np.array(self._rows),
            "random": np.frombuffer(bytearray().join(self._states), np.uint8),
            "random_ends": np.cumsum([len(state) for state in self._states]),
        }
        self._folder.mkdir(exist_ok=True)
        tensors = {name: torch.from_numpy(one) for name, one in held.items()}
        checksum = write_safetensors(tensors, self._folder / _name_of(steps))
        self._listed.append((_name_of(steps), checksum))
        self._written = self.steps
        self._empty()

    def listed(self) -> tuple[Listed, ...]:
        """The name and checksum of each file, as of the last flush."""
        return tuple(self._listed)

    def delete_others(self) -> None:
        """Delete what the record, once it is written, no longer lists."""
        names = {name for name, _ in self._listed}
        for path in self._folder.glob("*.safetensors"):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _take_state(self, name: str, state: bytes) -> None:
        """Keep one generator's state, if it is not the one kept last."""
        if name in self._places and state == self._states[self._places[name]]:
            return
        self._places[name] = len(self._states)
        self._states.append(state)
        self._bytes += len(state)

    def _empty(self) -> None:
        """Hold nothing that is written."""
        self._ids: list[NDArray[np.int64] | list[str]] = []
        self._batches: list[int] = []
        self._rows: list[list[int]] = []
        self._states: list[bytes] = []
        self._places: dict[str, int] = {}
        self._bytes = 0


def ids_of_batch(ids: Any) -> NDArray[np.int64] | list[str]:
    """Ids of a micro-batch: numbers, or a list of texts; a copy that the caller cannot change.

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
        return [str(one) for one in held]
    try:
        # From a list, `array` takes only whole numbers of 64 bits, and booleans.
        numbers = held if isinstance(held, np.ndarray) else np.frombuffer(array("q", held), "=i8")
        is_whole = numbers.dtype.kind in "iu" and numbers.ndim == 1 and len(numbers) > 0
        is_whole = is_whole and not isinstance(held[0], bool | np.bool_)
    except (ValueError, TypeError, OverflowError):
        numbers, is_whole = np.zeros(0), False
    if not is_whole or (numbers.dtype == np.uint64 and numbers.max() > np.iinfo(np.int64).max):
        raise CheckpointError(
            "recorder.batch(ids) takes a flat list of whole numbers (of 64 bits) or of strings, at "
            f"least one; {reprlib.repr(held)} was given."
        )
    return numbers.astype(np.int64)
