"""One unit of an index: a safetensors file that knows its own checksums.

The file is laid out here, not by the safetensors library, so that its bytes and its length follow
from what is in it: rows last, and before them what is kept beside each row, which can be read, and
checked, without reading the rows.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tracin.errors import IndexingError

ROWS = "rows"
BESIDE = "xxh3_128_of_header_and_columns"
OF_ROWS = "xxh3_128_of_rows"
_BLANK = "0" * 32
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
}
NAMES = {dtype: name for name, dtype in _DTYPES.items()}


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
        return _DTYPES[self.dtype]

    def bytes(self, rows: int) -> int:
        """How long so many rows are."""
        return rows * math.prod(self.shape) * self.torch_dtype.itemsize


def order(columns: Mapping[str, Column]) -> list[str]:
    """The names in the order of the file: wide numbers first, so that all are aligned, rows last.

    >>> order({"rows": Column("F16"), "loss": Column("F32"), "label": Column("I64")})
    ['label', 'loss', 'rows']
    """
    return sorted(columns, key=lambda one: (one == ROWS, -columns[one].torch_dtype.itemsize, one))


def header_of(columns: Mapping[str, Column], rows: int) -> bytes:
    """The beginning of a file of so many rows, with zeros for checksums."""
    header: dict[str, Any] = {"__metadata__": {BESIDE: _BLANK, OF_ROWS: _BLANK}}
    at = 0
    for name in order(columns):
        one = columns[name]
        stop = at + one.bytes(rows)
        shape = [rows, *one.shape]
        header[name] = {"dtype": one.dtype, "shape": shape, "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def front_of(columns: Mapping[str, Column], rows: int) -> int:
    """Where the rows begin in a file."""
    beside = sum(one.bytes(rows) for name, one in columns.items() if name != ROWS)
    return len(header_of(columns, rows)) + beside


def size_of(columns: Mapping[str, Column], rows: int) -> int:
    """How long a file of so many rows is."""
    return front_of(columns, rows) + columns[ROWS].bytes(rows)


@final
@dataclass(frozen=True)
class Unpacked:
    """A shard, as its bytes say it is.

    Attributes:
        tensors: By name, in the memory of the bytes.
        sums: What the checksums should be, of the columns and of the rows.
        blank: The header with zeros for them.
        front: Where the rows begin.
    """

    tensors: Mapping[str, Tensor]
    sums: tuple[str, str]
    blank: bytes
    front: int


def unpacked(content: memoryview, *, has_rows: bool = True) -> Unpacked:
    """Read a shard, or its front alone; nothing is compared.

    Raises:
        ValueError: It is truncated, or no shard.
    """
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        text = bytes(content[8:start])
        header: dict[str, Any] = json.loads(text)
        sums = header.pop("__metadata__")
        sums = str(sums[BESIDE]), str(sums[OF_ROWS])
        first, last = (start + offset for offset in header[ROWS]["data_offsets"])
        if len(content) != (last if has_rows else first):
            raise ValueError("its length is not what its header says")
        for one in sums:
            text = text.replace(one.encode(), _BLANK.encode(), 1)
        tensors = {
            name: _tensor(each, content[start:])
            for name, each in header.items()
            if has_rows or name != ROWS
        }
        return Unpacked(tensors, sums, bytes(content[:8]) + text, first)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"it was truncated, or is no shard: {error}") from error


@final
class Draft:
    """A shard in the making: its tensors lie in the bytes that will be the file.

    Args:
        columns: What is kept of each row.
        rows: How many there are.

    Attributes:
        tensors: By name, for others to fill; zeros until then.
    """

    def __init__(self, columns: Mapping[str, Column], rows: int) -> None:
        header = header_of(columns, rows)
        self._content = bytearray(size_of(columns, rows))
        self._content[: len(header)] = header
        found = unpacked(memoryview(self._content))
        self._front, self.tensors = found.front, found.tensors

    def finished(self) -> bytearray:
        """The file: equal for equal tensors. Each checksum is of bytes in which both are zeros."""
        content = memoryview(self._content)
        for one in (checksum(content[: self._front]), checksum(content[self._front :])):
            at = self._content.index(_BLANK.encode())
            content[at : at + len(one)] = one.encode()
        return self._content


def refuse_changed_columns(content: memoryview, found: Unpacked) -> None:
    """Compare header and columns with their checksum.

    Raises:
        ValueError: They differ.
    """
    _compare((found.blank, content[len(found.blank) : found.front]), found.sums[0])


def refuse_changed_rows(content: memoryview, found: Unpacked) -> None:
    """Compare the rows with their checksum.

    Raises:
        ValueError: They differ.
    """
    _compare((content[found.front :],), found.sums[1])


def problem_in(content: memoryview) -> str:
    """What is wrong with a shard, every byte of it read; empty where nothing is."""
    try:
        found = unpacked(content)
        refuse_changed_columns(content, found)
        refuse_changed_rows(content, found)
    except ValueError as error:
        return str(error)
    return ""


def checksum(*pieces: bytes | memoryview) -> str:
    """xxh3 with 128 bits of the pieces together, in hexadecimal.

    Raises:
        IndexingError: xxhash is not installed.
    """
    try:
        import xxhash
    except ImportError as error:
        raise IndexingError(
            "The files of an index are checked with xxhash, which is not installed: pip install "
            "'tracin[index]'."
        ) from error
    total = xxhash.xxh3_128()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def damaged(name: str, why: str) -> IndexingError:
    """The error for a shard that cannot be read."""
    return IndexingError(
        f"{name} cannot be read ({why}). Run tracin index verify to find all such files, delete "
        "them, and build again: only they are built."
    )


def _compare(pieces: tuple[bytes | memoryview, ...], expected: str) -> None:
    if checksum(*pieces) != expected:
        raise ValueError("changed since it was written: its checksum differs")


def _tensor(entry: Mapping[str, Any], data: memoryview) -> Tensor:
    start, stop = entry["data_offsets"]
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    if start == stop:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data[start:stop], dtype=dtype).view(shape)
