"""Writes `.safetensors` files that carry a checksum of their own, and checks it.

The file is laid out here, not by the safetensors library: tensors are written one at a time, so
that one copy is held and not all of them; the checksum is taken on the way; and the file gets the
permissions of the user's umask. Any reader of safetensors can read it.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracin.checkpoints.atomic import replacing
from tracin.checkpoints.checksum import blocks, text_of
from tracin.errors import CheckpointError

CRC = "tracin.crc32"  # of the whole file, with zeros where the checksum stands
_BLANK = "0" * 8
_DISPATCH = "__torch_dispatch__"  # what tensors made of other tensors (DTensor, ...) override
_LONGEST = 100_000_000  # bytes of a header, as the format limits it
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_sealed(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> str:
    """Write a `.safetensors` file, whole or not at all.

    Returns:
        Its checksum, for `check_seal`.

    Raises:
        CheckpointError: A tensor is of a kind that the format cannot hold.
    """
    for name, tensor in tensors.items():
        refuse_unsavable(name, tensor)
    # Wide numbers first, so that all are aligned.
    names = sorted(tensors, key=lambda one: (-tensors[one].dtype.itemsize, one))
    header = _header({name: tensors[name] for name in names}, metadata)
    crc = zlib.crc32(header)
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        file.write(header)
        for name in names:
            content = _bytes(tensors[name])
            crc = zlib.crc32(content, crc)
            file.write(content)
        file.seek(header.index(_entry(_BLANK)))
        file.write(_entry(text_of(crc)))
    return text_of(crc)


def refuse_other_file(path: Path, expected: str) -> None:
    """Compare the checksum that a file carries with the one in its record, reading its head only.

    Raises:
        CheckpointError: They differ, or the file cannot be read as safetensors.
    """
    seal = _seal(_read_header(path), path)
    if seal != expected:
        raise CheckpointError(
            f"{path} is not the file that its record lists: its checksum is {seal or 'missing'} "
            f"where {expected} was written. It was replaced, swapped with another or damaged. "
            "Restore it, or leave it out."
        )


def check_seal(path: Path, expected: str = "") -> None:
    """Compare a file with the checksum that it carries, if it carries one.

    Args:
        path: A `.safetensors` file.
        expected: The checksum that the file's record lists; "" where there is no record.

    Raises:
        CheckpointError: The file is damaged, or another than its record lists.
    """
    if expected:
        refuse_other_file(path, expected)
    header = _read_header(path)
    seal = _seal(header, path)
    if not seal:
        return
    crc = zlib.crc32(header.replace(_entry(seal), _entry(_BLANK), 1))
    for block in blocks(path, len(header), path.stat().st_size):
        crc = zlib.crc32(block, crc)
    if text_of(crc) != seal:
        raise CheckpointError(
            f"{path} is damaged: its content does not match its checksum ({text_of(crc)} where "
            f"{seal} was written). Restore it from a backup, or leave it out."
        )


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    content: dict[str, Any] = {"__metadata__": {CRC: _BLANK, **metadata}}
    at = 0
    for name, tensor in tensors.items():
        stop = at + tensor.numel() * tensor.dtype.itemsize
        content[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, stop],
        }
        at = stop
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entry(seal: str) -> bytes:
    """How a checksum stands in the header."""
    return f'"{CRC}":"{seal}"'.encode()


def _read_header(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            front = file.read(8)
            size = int.from_bytes(front, "little")
            if len(front) < 8 or not 2 <= size <= min(_LONGEST, path.stat().st_size - 8):
                raise ValueError(f"its header cannot have {size} bytes")
            return front + file.read(size)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}): it is truncated, damaged or of "
            "another kind. Restore it, or leave it out."
        ) from error


def _seal(header: bytes, path: Path) -> str:
    try:
        metadata = json.loads(header[8:])["__metadata__"]
        seal = metadata.get(CRC, "")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}): its header is damaged. Restore it, "
            "or leave it out."
        ) from error
    except (KeyError, TypeError, AttributeError):
        return ""  # written by another program
    return seal if isinstance(seal, str) else ""


def _bytes(tensor: Tensor) -> memoryview:
    held = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return held.reshape(-1).view(torch.uint8).numpy().data


def refuse_unsavable(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not dense numbers of a dtype that the format has.

    Raises:
        CheckpointError: It is such a tensor.
    """
    kind = None
    if tensor.layout != torch.strided:
        kind = f"is {str(tensor.layout).removeprefix('torch.')}"
    elif tensor.is_meta:
        kind = 'is on the device "meta" and holds no numbers'
    elif tensor.is_quantized or tensor.dtype not in _NAMES:
        kind = f"has the dtype {str(tensor.dtype).removeprefix('torch.')}"
    elif getattr(type(tensor), _DISPATCH, None) is not getattr(Tensor, _DISPATCH, None):
        kind = f"is a {type(tensor).__name__}, whose numbers lie elsewhere"
    if kind is not None:
        raise CheckpointError(
            f"'{name}' cannot be saved: it {kind}, and a checkpoint holds dense tensors of the "
            "dtypes of safetensors. Keep it outside of the model's state dict."
        )
