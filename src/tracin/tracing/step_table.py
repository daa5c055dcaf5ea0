"""What a trace notes of every step: the real losses of the queries, and what was predicted."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import final

import numpy as np
from torch import Tensor

from tracin.errors import TracingError
from tracin.tracing.paths import Path

# What a step's prediction is made of, beside its examples (method: E4's lines for nobody).
PARTS = ("examples", "weight_decay", "momentum", "unattributed")
HEAD = ("step", "examples", "first")  # the first example's position in the training data


@final
@dataclass(frozen=True, eq=False)
class StepRow:
    """One traced step.

    Attributes:
        step: How many steps came before it.
        examples: How many examples it had.
        first: The position of the first one.
        before: The queries' losses at its start: [queries].
        after: At its end.
        buffers: The part of the drop that comes of running statistics, not of weights.
        parts: Path -> part -> [queries].
    """

    step: int
    examples: int
    first: int
    before: Tensor
    after: Tensor
    buffers: Tensor
    parts: Mapping[Path, Mapping[str, Tensor]]


@final
@dataclass(frozen=True, eq=False)
class Steps:
    """All traced steps, as they lie on the disk: float64, one row a step.

    Attributes:
        rows: [steps, columns], memory-mapped.
        queries: How many there are.
        paths: Whose parts are noted.
    """

    rows: np.ndarray
    queries: int
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def step(self) -> np.ndarray:
        """How many steps came before each: [steps]."""
        return self.rows[:, 0].astype(np.int64)

    @property
    def examples(self) -> np.ndarray:
        """How many examples each had: [steps]."""
        return self.rows[:, 1].astype(np.int64)

    @property
    def first(self) -> np.ndarray:
        """The position of each step's first example: [steps]."""
        return self.rows[:, 2].astype(np.int64)

    @property
    def before(self) -> np.ndarray:
        """The queries' losses at the start of each step: [steps, queries]."""
        return self._block(0)

    @property
    def after(self) -> np.ndarray:
        """The queries' losses at the end of each step: [steps, queries]."""
        return self._block(1)

    @property
    def actual(self) -> np.ndarray:
        """The real loss drop of each step: [steps, queries]."""
        return self.before - self.after

    @property
    def buffers(self) -> np.ndarray:
        """The part of the drop that comes of running statistics: [steps, queries]."""
        return self._block(2)

    def part(self, path: Path, part: str) -> np.ndarray:
        """One part of the prediction, such as "examples" or "momentum": [steps, queries]."""
        return self._block(3 + self.paths.index(path) * len(PARTS) + PARTS.index(part))

    def predicted(self, path: Path) -> np.ndarray:
        """The sum of all parts: [steps, queries]."""
        parts = [self.part(path, part) for part in PARTS]
        return np.sum([*parts, self.buffers], axis=0)

    def _block(self, number: int) -> np.ndarray:
        start = len(HEAD) + number * self.queries
        return self.rows[:, start : start + self.queries]


def columns(queries: int, paths: Sequence[Path]) -> int:
    """The numbers in one row."""
    return len(HEAD) + queries * (3 + len(paths) * len(PARTS))


@final
class StepWriter:
    """Appends rows to a file, and knows how many there are."""

    def __init__(self, path: FilePath, queries: int, paths: Sequence[Path], rows: int) -> None:
        self.rows = rows
        self._path, self._queries, self._paths = path, queries, tuple(paths)
        width = 8 * columns(queries, paths)
        path.touch()
        if path.stat().st_size < rows * width:
            raise TracingError(
                f"{path} holds fewer than the {rows} steps that were saved: it was cut off. Give "
                "a new folder."
            )
        # What a broken run noted after it was saved last, training repeats.
        os.truncate(path, rows * width)

    def append(self, row: StepRow) -> None:
        """Note one step."""
        parts = [row.parts[path][part] for path in self._paths for part in PARTS]
        blocks = [row.before, row.after, row.buffers, *parts]
        head = np.array([row.step, row.examples, row.first], dtype=np.float64)
        values = [head, *(block.cpu().double().numpy() for block in blocks)]
        with self._path.open("ab") as file:
            file.write(np.concatenate(values).tobytes())
        self.rows += 1


def read_steps(path: FilePath, queries: int, paths: Sequence[Path], rows: int) -> Steps:
    """The first `rows` rows of a file."""
    shape = (rows, columns(queries, paths))
    if rows == 0:
        return Steps(np.zeros(shape), queries, tuple(paths))
    return Steps(np.memmap(path, np.float64, "r", shape=shape), queries, tuple(paths))
