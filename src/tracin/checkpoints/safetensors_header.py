"""The head of a `.safetensors` file, checked before a byte of a tensor is read.

The format's own library maps files into memory, so that one written anew in use would end this
process, and it calls an interrupted read a damaged file.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import torch
from torch import Tensor

# The file format wants every tensor once: further names of one tensor stand in the metadata.
ALIASES = "tracin.aliases"
METADATA = "__metadata__"
LONGEST = 100_000_000  # bytes of a head, as the format's own library has it
MOST_DIMENSIONS = 64  # as torch has it
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a file.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        start: The position of its first byte in the file.
        size: How many bytes it takes.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int

    def tensor(self, file: BufferedReader) -> Tensor:
        """The tensor itself, in memory of its own.

        Raises:
            ValueError: The file ends before it.
        """
        held = torch.empty(self.size, dtype=torch.uint8)
        file.seek(self.start)
        if file.readinto(held.numpy().data) != self.size:
            raise ValueError("it ends within a tensor")
        return held.view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says that it holds.

    Attributes:
        entries: Name -> where that tensor lies.
        metadata: Texts by name.
        aliases: Further name of a tensor -> its name in `entries`.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    aliases: Mapping[str, str]

    @classmethod
    def read(cls, file: BufferedReader) -> "Header":
        """Read and check the head of an open file.

        Raises:
            ValueError: It is none, or does not describe the rest of the file byte by byte.
        """
        held = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if held < 8 or not 2 <= length <= min(held - 8, LONGEST):
            raise ValueError(f"its head has {length:,} bytes, the file {held:,}")
        content = json.loads(file.read(length), object_pairs_hook=once)
        if not isinstance(content, dict):
            raise ValueError("its head is no JSON object")
        metadata = texts(content.pop(METADATA, {}), METADATA)
        entries = {name: entry(name, one, 8 + length) for name, one in content.items()}
        refuse_gaps(entries, 8 + length, held)
        aliases = texts(json.loads(metadata.get(ALIASES, "{}")), ALIASES)
        lost = [name for name in aliases.values() if name not in entries]
        if lost:
            raise ValueError(f"it has a second name for {lost[0]!r}, which is not there")
        return cls(entries, metadata, aliases)


def entry(name: str, content: Any, start: int) -> Entry:
    """One tensor of the head; positions count from `start`, the end of the head.

    Raises:
        ValueError: It is not as the format has it.
    """
    if not isinstance(content, dict) or set(content) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} needs dtype, shape and data_offsets")
    shape, offsets = content["shape"], content["data_offsets"]
    is_place = is_counts(shape) and is_counts(offsets) and len(offsets) == 2
    if not is_place or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{name!r} has the shape {shape!r} at {offsets!r}")
    dtype = DTYPES.get(content["dtype"]) if isinstance(content["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"{name!r} is of the type {content['dtype']!r}, which has no tensors here")
    size = offsets[1] - offsets[0]
    if size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} takes {size:,} bytes, which its shape {shape} does not fill")
    return Entry(dtype, tuple(shape), start + offsets[0], size)


def refuse_gaps(entries: Mapping[str, Entry], start: int, held: int) -> None:
    """Tensors must follow each other from the head to the file's end.

    Raises:
        ValueError: They do not.
    """
    at = start
    for name, one in sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].size)):
        if one.start != at:
            raise ValueError(f"{name!r} does not follow the tensor before it")
        at += one.size
    if at != held:
        raise ValueError(f"its tensors end at byte {at:,}, the file at {held:,}")


def is_counts(values: Any) -> bool:
    """Whether this is a list of whole numbers of at least zero."""
    return isinstance(values, list) and all(type(one) is int and one >= 0 for one in values)


def texts(content: Any, name: str) -> dict[str, str]:
    """A JSON object of texts.

    Raises:
        ValueError: It is another thing.
    """
    if not isinstance(content, dict) or not all(isinstance(one, str) for one in content.values()):
        raise ValueError(f"{name} holds something else than texts")
    return content


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name stands twice.

    Raises:
        ValueError: One does.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in its head")
    return found
