"""What a trace notes of every step: the real losses of the queries, and what was predicted."""

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor

from tracin.errors import TracingError
from tracin.files import crc_of, file_blocks, replacing, text_of
from tracin.tracing.paths import Quadrature

# What a step's prediction is made of, besides its examples.
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
        buffers: The part of the drop that comes from running statistics, not of weights.
        parts: Path -> part -> [queries].
    """

    step: int
    examples: int
    first: int
    before: Tensor
    after: Tensor
    buffers: Tensor
    parts: Mapping[Quadrature, Mapping[str, Tensor]]


@final
@dataclass(frozen=True, eq=False)
class Steps:
    """All traced steps, as they lie on the disk: float64, one row per step.

    Attributes:
        rows: [steps, columns], memory-mapped.
        queries: How many there are.
        paths: Whose parts are noted.
    """

    rows: np.ndarray
    queries: int
    paths: tuple[Quadrature, ...]

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
        """The part of the drop that comes from running statistics: [steps, queries]."""
        return self._block(2)

    def part(self, path: Quadrature, part: str) -> np.ndarray:
        """One part of the prediction, such as "examples" or "momentum": [steps, queries]."""
        return self._block(3 + self.paths.index(path) * len(PARTS) + PARTS.index(part))

    def predicted(self, path: Quadrature) -> np.ndarray:
        """The sum of all parts: [steps, queries]."""
        parts = [self.part(path, part) for part in PARTS]
        return np.sum([*parts, self.buffers], axis=0)

    def _block(self, number: int) -> np.ndarray:
        start = len(HEAD) + number * self.queries
        return self.rows[:, start : start + self.queries]


def row_width(queries: int, paths: Sequence[Quadrature]) -> int:
    """The numbers in one row."""
    return len(HEAD) + queries * (3 + len(paths) * len(PARTS))


@final
class StepWriter:
    """Appends rows to a file, and knows how many there are.

    Args:
        path: The file.
        queries: How many there are.
        paths: Whose parts are noted.
        rows: How many rows of the file count; training repeats what a broken run noted after them.
        checksum: That of these rows.
    """

    def __init__(
        self, path: Path, queries: int, paths: Sequence[Quadrature], rows: int, checksum: str
    ) -> None:
        self.rows = rows
        self._path, self._paths = path, tuple(paths)
        self._width = 8 * row_width(queries, paths)
        size = path.stat().st_size if path.is_file() else 0
        self._crc = crc_of(path, rows * self._width) if rows else 0
        if size < rows * self._width or self.checksum != checksum:
            raise TracingError(
                f"{path} does not hold the {rows} steps that were saved: it was cut off or "
                "damaged. Restore it from a backup, or give a new folder."
            )
        # A file of its own: a reader may have mapped rows that are now written anew.
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            for block in file_blocks(path, 0, rows * self._width) if rows else ():
                file.write(block)
        self._reserved = rows * self._width

    @property
    def checksum(self) -> str:
        """That of all rows so far."""
        return text_of(self._crc)

    @property
    def missing(self) -> int:
        """To how many bytes the file must grow for one more row; 0 where there is room."""
        end = (self.rows + 1) * self._width
        return 0 if end <= self._reserved else end + GROWTH

    def grown(self, size: int) -> None:
        """The file has so many bytes now."""
        self._reserved = size

    def trim(self) -> None:
        """Cut the file to the rows that it has."""
        os.truncate(self._path, self.rows * self._width)
        self._reserved = self.rows * self._width

    def append(self, row: StepRow) -> None:
        """Note one step."""
        parts = [row.parts[path][part] for path in self._paths for part in PARTS]
        numbers = [row.before, row.after, row.buffers, *parts]
        head = np.array([row.step, row.examples, row.first], dtype=np.float64)
        values = [head, *(one.cpu().double().numpy() for one in numbers)]
        content = np.concatenate(values).tobytes()
        with self._path.open("r+b") as file:
            file.seek(self.rows * self._width)
            file.write(content)
        self._crc = zlib.crc32(content, self._crc)
        self.rows += 1


def has_steps(path: Path, queries: int, paths: Sequence[Quadrature]) -> bool:
    """Whether a step was ever noted in this file; unused room in it is zeros."""
    if not path.is_file() or path.stat().st_size < 8 * row_width(queries, paths):
        return False
    return bool(np.fromfile(path, np.float64, len(HEAD))[HEAD.index("examples")])


GROWTH = 1 << 20  # bytes by which the file grows beyond the row that asks for it
