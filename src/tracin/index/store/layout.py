"""One unit of an index: a safetensors file that knows what it holds, and its own checksums.

The file is laid out here, not by the safetensors library, so that all of it but its numbers and
their checksums follows from the manifest: rows last, and before them the extra columns,
which can be read, and checked, without reading the rows. Reading compares the header with the one
that must be there, and takes nothing from it: neither a damaged header nor one of another file
decides where numbers are looked for.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from tracin.errors import IndexingError
from tracin.index.store.checksums import BLANK, checksum, compare
from tracin.index.store.number_format import is_finite

ROWS = "rows"
SCALES = "scales"
BESIDE = "xxh3_128_of_header_and_columns"
OF_ROWS = "xxh3_128_of_rows"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@final
@dataclass(frozen=True)
class Column:
    """What is kept of each row under one name.

    Attributes:
        dtype: As safetensors names it, such as "F32".
        shape: Of one row's; () for a number.
    """

    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype."""
        return DTYPES[self.dtype]

    def bytes(self, rows: int) -> int:
        """How long so many rows are."""
        return rows * math.prod(self.shape) * self.torch_dtype.itemsize


def column_order(columns: Mapping[str, Column]) -> list[str]:
    """The names in the order of the file: wide numbers first, so that all are aligned, rows last.

    >>> column_order({"rows": Column("F16"), "loss": Column("F32"), "label": Column("I64")})
    ['label', 'loss', 'rows']
    """
    return sorted(columns, key=lambda one: (one == ROWS, -columns[one].torch_dtype.itemsize, one))


@final
@dataclass(frozen=True)
class FileLayout:
    """Where everything lies in one file.

    Attributes:
        columns: What is kept of each row, `rows` among them.
        rows: How many there are.
        identity: What the file says of itself, by name.
    """

    columns: Mapping[str, Column]
    rows: int
    identity: Mapping[str, str]

    @cached_property
    def header(self) -> bytes:
        """The beginning of the file, with zeros for checksums."""
        blank = BLANK.decode()
        found: dict[str, Any] = {"__metadata__": {BESIDE: blank, OF_ROWS: blank, **self.identity}}
        for name, (start, stop) in self._offsets.items():
            one = self.columns[name]
            shape = [self.rows, *one.shape]
            found[name] = {"dtype": one.dtype, "shape": shape, "data_offsets": [start, stop]}
        text = json.dumps(found, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def front(self) -> int:
        """Where the rows begin."""
        return len(self.header) + self._offsets[ROWS][0]

    @property
    def size(self) -> int:
        """How long the file is."""
        return len(self.header) + self._offsets[ROWS][1]

    def tensors(
        self, content: bytearray | memoryview, *, has_rows: bool = True
    ) -> dict[str, Tensor]:
        """What is kept, by name, in the memory of the bytes.

        Args:
            content: The file, or its front alone.
            has_rows: Whether the rows are there.
        """
        data = memoryview(content)[len(self.header) :]
        return {
            name: _tensor(self.columns[name], self.rows, data[start:stop])
            for name, (start, stop) in self._offsets.items()
            if has_rows or name != ROWS
        }

    def refuse_other(self, content: memoryview) -> None:
        """The header must be that of this file.

        Args:
            content: The file, or its beginning.

        Raises:
            ValueError: It is another's, or was changed.
        """
        if self._blanked(content) != self.header:
            raise ValueError(self._difference(content))

    def refuse_changed_columns(self, content: memoryview) -> None:
        """Compare header and columns with their checksum.

        Raises:
            ValueError: They differ, or the header is another file's.
        """
        self.refuse_other(content)
        compare(self._sum(content, 0), self.header, content[len(self.header) : self.front])

    def refuse_changed_rows(self, content: memoryview) -> None:
        """Compare the rows with their checksum.

        Raises:
            ValueError: They differ.
        """
        compare(self._sum(content, 1), content[self.front :])

    def finish(self, content: bytearray) -> None:
        """Put the checksums into a file that has everything else."""
        view = memoryview(content)
        sums = checksum(view[: self.front]), checksum(view[self.front :])
        for at, one in zip(self._slots, sums, strict=True):
            view[at : at + len(one)] = one.encode()

    @cached_property
    def _offsets(self) -> dict[str, tuple[int, int]]:
        """Where each column begins and ends, counted from the end of the header."""
        found, at = {}, 0
        for name in column_order(self.columns):
            stop = at + self.columns[name].bytes(self.rows)
            found[name] = at, stop
            at = stop
        return found

    @cached_property
    def _slots(self) -> tuple[int, int]:
        """Where the two checksums are."""
        first = self.header.index(BLANK)
        return first, self.header.index(BLANK, first + len(BLANK))

    def _sum(self, content: memoryview, number: int) -> str:
        at = self._slots[number]
        return bytes(content[at : at + len(BLANK)]).decode("latin-1")

    def _blanked(self, content: memoryview) -> bytes:
        head = bytearray(content[: len(self.header)])
        for at in self._slots:
            head[at : at + len(BLANK)] = BLANK
        return bytes(head)

    def _difference(self, content: memoryview) -> str:
        """What another header says, as far as it can be read."""
        said = _metadata(content)
        if said is None:
            return "its header was changed, or it is no file of rows"
        if "index" not in said:
            return "it does not say which rows it holds: an earlier release of tracin wrote it"
        other = [name for name in self.identity if said.get(name) != self.identity[name]]
        if not other:
            return "its header was changed since it was written"
        if "index" in other or "plan" in other:
            return "it holds rows of another index"
        if "data" in other:
            return "it holds rows of other data"
        return f"it holds {_unit(said)}, where {_unit(self.identity)} should be"


def new_file(layout: FileLayout) -> tuple[bytearray, dict[str, Tensor]]:
    """A file in the making: its bytes, and its tensors in them, zeros for others to fill."""
    content = bytearray(layout.size)
    content[: len(layout.header)] = layout.header
    return content, layout.tensors(content)


def refuse_non_finite_columns(tensors: Mapping[str, Tensor]) -> None:
    """Numbers that were written are finite.

    Raises:
        ValueError: One is NaN or infinite.
    """
    for name, one in tensors.items():
        if one.is_floating_point() and not is_finite(one):
            raise ValueError(f"its {name} hold NaN or infinity")


def damaged(name: str, why: str) -> IndexingError:
    """The error for a shard that cannot be read."""
    return IndexingError(
        f"{name} cannot be read ({why}). Run tracin index verify to find all such files, delete "
        "them, and build again: only they are built."
    )


def _metadata(content: memoryview) -> dict[str, Any] | None:
    """What a header says of its file, if anything can be read of it; for words alone."""
    try:
        length = int.from_bytes(content[:8], "little")
        said = json.loads(bytes(content[8 : 8 + min(length, 1 << 20)]))["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _unit(said: Mapping[str, Any]) -> str:
    rows, checkpoint, number = (str(said.get(n))[:70] for n in ("rows", "checkpoint", "number"))
    return f"rows {rows} of checkpoint {checkpoint} (random numbers {number})"


def _tensor(column: Column, rows: int, data: memoryview) -> Tensor:
    shape = (rows, *column.shape)
    if math.prod(shape) == 0:
        return torch.zeros(shape, dtype=column.torch_dtype)
    return torch.frombuffer(data, dtype=column.torch_dtype).view(shape)
