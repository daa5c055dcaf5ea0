"""One unit of an index: a safetensors file that knows its own checksum."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from tracin.errors import IndexingError

KEY = "xxh3_128"
_BLANK = "0" * 32
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I8": torch.int8,
}


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a shard: equal for equal tensors.

    The checksum is that of the whole file with zeros in the checksum's place.
    """
    # One entry of metadata alone: the library writes several in no fixed order.
    blank = save({name: one.contiguous() for name, one in tensors.items()}, {KEY: _BLANK})
    return blank.replace(_BLANK.encode(), checksum(blank).encode(), 1)


def unpacked(content: memoryview, name: str) -> dict[str, Tensor]:
    """The tensors of a shard, in the memory of `content`.

    Raises:
        IndexingError: It is truncated, or no shard.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(bytes(content[8 : 8 + size]))
        header.pop("__metadata__", None)
        data = memoryview(content)[8 + size :]
        if max((each["data_offsets"][1] for each in header.values()), default=0) != len(data):
            raise ValueError("its length is not what its header says")
        return {key: _tensor(each, data) for key, each in header.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(name, str(error)) from error


def problem_in(content: memoryview) -> str:
    """What is wrong with a shard, every byte of it read; empty where nothing is."""
    whole = bytearray(content)
    try:
        unpacked(memoryview(whole), "")
        size = int.from_bytes(whole[:8], "little")
        found = json.loads(whole[8 : 8 + size])["__metadata__"][KEY]
    except (IndexingError, KeyError, TypeError, ValueError):
        return "truncated or no shard"
    at = whole.index(found.encode())
    blank = whole[:at] + _BLANK.encode() + whole[at + len(found) :]
    is_same = checksum(bytes(blank)) == found
    return "" if is_same else "changed since it was written: its checksum differs"


def checksum(content: bytes) -> str:
    """xxh3 with 128 bits, in hexadecimal.

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
    return xxhash.xxh3_128_hexdigest(content)


def damaged(name: str, why: str) -> IndexingError:
    """The error for a shard that cannot be read."""
    return IndexingError(
        f"{name} cannot be read ({why}). Run tracin index verify to find all such files, delete "
        "them, and build again: only they are built."
    )


def _tensor(entry: Mapping[str, Any], data: memoryview) -> Tensor:
    start, stop = entry["data_offsets"]
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    if start == stop:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data[start:stop], dtype=dtype).view(shape)
