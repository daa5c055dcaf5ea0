"""Which training examples each optimizer step has visited, and the random state it began with.

A Recorder writes these files to `visits` in its folder, each only ever added to:

    visits.json      the format, and whether ids are numbers or text
    ids.i64          int64: all ids in their order; for text, ids.jsonl, one line a micro-batch
    batches.i64      int64 a micro-batch: how many ids (for text: bytes) come up to its end
    steps.i64        5 x int64 a step: how many micro-batches come up to its end, and which states
                     of random.raw it began with: CPU, CUDA, Python, NumPy
    random.raw       the states; one is written only where it differs from the one before
    random_ends.i64  int64 a state: how many bytes come up to its end

Numbers are little-endian. A step counts once all that it points to is there, so a process that
was killed while it wrote leaves whole steps.
"""

import json
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracin.checkpoints.hugging_face import read_json
from tracin.checkpoints.random_state import RandomState as RandomState
from tracin.checkpoints.record import has_record, read_record
from tracin.errors import CheckpointError

FOLDER, ABOUT, FORMAT = "visits", "visits.json", 1
STEPS, BATCHES, RANDOM, RANDOM_ENDS = "steps.i64", "batches.i64", "random.raw", "random_ends.i64"
IDS = {"int": "ids.i64", "text": "ids.jsonl"}
INT64 = np.dtype("<i8")
GENERATORS = tuple(field.name for field in fields(RandomState))
ROW = 1 + len(GENERATORS)


@dataclass(frozen=True, eq=False)
class Visits:
    """The ids that were given to `Recorder.batch`, step by step, read from the disk when asked for.

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
            CheckpointError: No Recorder wrote there, or it was not given any ids.
        """
        folder = Path(folder).expanduser()
        if not has_record(folder) or not (folder / FOLDER / ABOUT).is_file():
            raise CheckpointError(
                f"{folder} has no visits: they are written where a tracin.Recorder trains and "
                "recorder.batch(ids) is called before each step. Give such a Recorder's folder."
            )
        return cls.within(folder / FOLDER, len(read_record(folder).log))

    @classmethod
    def within(cls, folder: Path, limit: int) -> "Visits":
        """The whole steps in the folder `visits` itself, at most `limit`."""
        about = read_json(folder / ABOUT)
        if about.get("format") != FORMAT or about.get("ids") not in IDS:
            raise CheckpointError(
                f"{folder / ABOUT} has format {about.get('format')!r} with ids of the kind "
                f"{about.get('ids')!r}, and this release of tracin reads {FORMAT} with one of "
                f"{list(IDS)}. Read it with the release that wrote it."
            )
        whole = length(folder / STEPS) // (ROW * INT64.itemsize)
        rows = numbers(folder / STEPS, 0, min(whole, limit) * ROW).reshape(-1, ROW)
        found = cls(folder, about["ids"], rows)
        while len(found) and not found._is_whole():
            found = cls(folder, found.kind, found.rows[:-1])
        return found

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
        """The length of each file, in bytes, if it held these steps and nothing more.

        Raises:
            IndexError: A step points past the end of a file.
        """
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

    def _is_whole(self) -> bool:
        """Whether all that the last step points to is on the disk."""
        try:
            sizes = self.sizes()
        except IndexError:
            return False
        return all(size <= length(self.folder / name) for name, size in sizes.items())

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
        return np.frombuffer(held, INT64).tolist() if self.kind == "int" else json.loads(held)

    def _blob(self, place: int) -> bytes:
        """One state of random.raw."""
        start, stop = bounds_of(self.folder / RANDOM_ENDS, place, place + 1)
        return read_between(self.folder / RANDOM, start, stop)


def read_between(path: Path, start: int, stop: int) -> bytes:
    """A part of a file."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def length(path: Path) -> int:
    """The size of a file in bytes; 0 where it is not there."""
    return path.stat().st_size if path.is_file() else 0


def numbers(path: Path, start: int, stop: int) -> NDArray[np.int64]:
    """Some of the numbers in a file."""
    # Not memory-mapped: a Recorder that goes on cuts its files, and a map would crash its reader.
    held = read_between(path, start * INT64.itemsize, stop * INT64.itemsize)
    return np.frombuffer(held, INT64, len(held) // INT64.itemsize)


def bounds_of(path: Path, first: int, last: int) -> list[int]:
    """Where each of the parts `first` to `last - 1` begins, and the last one ends.

    Raises:
        IndexError: The file of their ends is too short.
    """
    ends = [0, *numbers(path, 0, last).tolist()] if first == 0 else numbers(path, first - 1, last)
    if len(ends) != last - first + 1:
        raise IndexError(f"{path} ends before part {last}")
    return [int(end) for end in ends]
