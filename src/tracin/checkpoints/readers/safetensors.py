"""`.safetensors` files: tensors and names, nothing that can run; read with every check.

The format's own library maps files into memory, so that one written anew in use would end this
process, and it calls an interrupted read a damaged file. So files are read here, the head checked
before a byte of a tensor is read. They are written here too: one tensor at a time, so that one
copy is held and not all of them; with a checksum taken on the way; and with the permissions of the
user's umask. Any reader of safetensors can read them. What parses a header raises ValueError, which
`unreadable` makes a CheckpointError.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracin.errors import CheckpointError
from tracin.files import bytes_of, file_blocks, replacing, text_of
from tracin.plain_text import a_kind

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
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CRC = "tracin.crc32"  # of the whole file, with zeros where the checksum stands
_BLANK = "0" * 8
_DISPATCH = "__torch_dispatch__"  # what tensors made of other tensors (DTensor, ...) override


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, on the CPU, in memory that the file does not share."""
    return read_tensors(path)[0]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors of a `.safetensors` file, and its metadata."""
    try:
        with path.open("rb") as file:
            header = Header.read(file)
            if CRC in header.metadata:
                check_seal(path)
            weights = {name: entry.tensor(file) for name, entry in header.entries.items()}
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    weights |= {alias: weights[name] for alias, name in header.aliases.items()}
    return weights, header.metadata


def read_header(path: Path) -> "Header":
    """The head of a file alone."""
    try:
        with path.open("rb") as file:
            return Header.read(file)
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error


def read_metadata(path: Path) -> Mapping[str, str]:
    """The metadata alone, from the head of the file."""
    return read_header(path).metadata


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes alone, from the head of the file: name -> shape."""
    header = read_header(path)
    shapes = {name: entry.shape for name, entry in header.entries.items()}
    return shapes | {alias: shapes[name] for alias, name in header.aliases.items()}


def write_safetensors(
    weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> str:
    """Write a state dict whole or not at all, and return the file's checksum.

    A tensor with two names is stored once. `metadata` are further texts for the head.
    """
    names: dict[tuple[object, ...], str] = {}
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in weights.items():
        refuse_unsavable(name, tensor)
        place = memory(tensor)
        if tensor.numel() and place in names:
            aliases[name] = names[place]
            continue
        names[place] = name
        kept[name] = tensor
    head = {"format": "pt", ALIASES: json.dumps(aliases), **(metadata or {})}
    return write_sealed(kept, path, head)


def memory(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same numbers in the same memory."""
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that is damaged or something else than its name says."""
    if isinstance(error, OSError):
        return CheckpointError(f"{path} cannot be read: {error.strerror or error}.")
    return CheckpointError(
        f"{path} cannot be read as safetensors ({error}): it is truncated, damaged or of another "
        "kind. Write it again, or leave it out."
    )


@dataclass(frozen=True)
class TensorEntry:
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
        """The tensor itself, in memory of its own."""
        content = torch.empty(self.size, dtype=torch.uint8)
        file.seek(self.start)
        if file.readinto(content.numpy().data) != self.size:
            raise ValueError("it ends within a tensor")
        return content.view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says that it holds.

    Attributes:
        entries: Name -> where that tensor lies.
        metadata: Texts by name.
        aliases: Further name of a tensor -> its name in `entries`.
    """

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    aliases: Mapping[str, str]

    @classmethod
    def read(cls, file: BufferedReader) -> "Header":
        """Read and check the head of an open file."""
        front = front_of(file)
        content = json.loads(front[8:], object_pairs_hook=once)
        if not isinstance(content, dict):
            raise ValueError("its head is not a JSON object")
        metadata = texts(content.pop(METADATA, {}), METADATA)
        entries = {name: tensor_entry(name, one, len(front)) for name, one in content.items()}
        refuse_gaps(entries, len(front), file.seek(0, 2))
        aliases = texts(json.loads(metadata.get(ALIASES, "{}")), ALIASES)
        lost = [name for name in aliases.values() if name not in entries]
        if lost:
            raise ValueError(f"it has a second name for {lost[0]!r}, which is not there")
        return cls(entries, metadata, aliases)


def tensor_entry(name: str, content: Any, start: int) -> TensorEntry:
    """One tensor of the head; positions count from `start`, the end of the head."""
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
    return TensorEntry(dtype, tuple(shape), start + offsets[0], size)


def refuse_gaps(entries: Mapping[str, TensorEntry], start: int, file_size: int) -> None:
    """Tensors must follow each other from the head to the file's end."""
    at = start
    for name, one in sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].size)):
        if one.start != at:
            raise ValueError(f"{name!r} does not follow the tensor before it")
        at += one.size
    if at != file_size:
        raise ValueError(f"its tensors end at byte {at:,}, the file at {file_size:,}")


def is_counts(values: Any) -> bool:
    """Whether this is a list of whole numbers of at least zero."""
    return isinstance(values, list) and all(type(one) is int and one >= 0 for one in values)


def texts(content: Any, name: str) -> dict[str, str]:
    """A JSON object of texts."""
    if not isinstance(content, dict) or not all(isinstance(one, str) for one in content.values()):
        raise ValueError(f"{name} holds something else than texts")
    return content


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name stands twice."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands twice in its head")
    return content


def write_sealed(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> str:
    """Write a `.safetensors` file, whole or not at all; returns its checksum."""
    for name, tensor in tensors.items():
        refuse_unsavable(name, tensor)
    # Wide numbers first, so that all are aligned.
    names = sorted(tensors, key=lambda one: (-tensors[one].dtype.itemsize, one))
    header = header_of({name: tensors[name] for name in names}, metadata)
    crc = zlib.crc32(header)
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        file.write(header)
        for name in names:
            content = bytes_of(tensors[name])
            crc = zlib.crc32(content, crc)
            file.write(content)
        file.seek(header.index(seal_field(_BLANK)))
        file.write(seal_field(text_of(crc)))
    return text_of(crc)


def refuse_other_file(path: Path, expected: str) -> None:
    """Compare the checksum in the head of a file with the one in its record."""
    seal = seal_within(header_bytes(path), path)
    if seal != expected:
        raise CheckpointError(
            f"{path} is not the file that its record lists: its checksum is {seal or 'missing'} "
            f"where {expected} was written. It was replaced, swapped with another or damaged. "
            "Restore it, or leave it out."
        )


def check_seal(path: Path, expected: str = "") -> None:
    """Compare a file with the checksum in its head, and that with its record's if `expected`."""
    if expected:
        refuse_other_file(path, expected)
    header = header_bytes(path)
    seal = seal_within(header, path)
    if not seal:
        return
    crc = zlib.crc32(header.replace(seal_field(seal), seal_field(_BLANK), 1))
    for block in file_blocks(path, len(header), path.stat().st_size):
        crc = zlib.crc32(block, crc)
    if text_of(crc) != seal:
        raise CheckpointError(
            f"{path} is damaged: its content does not match its checksum ({text_of(crc)} where "
            f"{seal} was written). Restore it from a backup, or leave it out."
        )


def header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The head for these tensors, one after the other, with zeros for the checksum."""
    content: dict[str, Any] = {METADATA: {CRC: _BLANK, **metadata}}
    at = 0
    for name, tensor in tensors.items():
        stop = at + tensor.numel() * tensor.dtype.itemsize
        content[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, stop],
        }
        at = stop
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def seal_field(seal: str) -> bytes:
    """How a checksum stands in the header."""
    return f'"{CRC}":"{seal}"'.encode()


def front_of(file: BufferedReader) -> bytes:
    """The head of an open file, with the eight bytes of its length."""
    file_size = file.seek(0, 2)
    file.seek(0)
    front = file.read(8)
    length = int.from_bytes(front, "little")
    if file_size < 8 or not 2 <= length <= min(file_size - 8, LONGEST):
        raise ValueError(f"its head has {length:,} bytes, the file {file_size:,}")
    return front + file.read(length)


def header_bytes(path: Path) -> bytes:
    """The head of a file, with the eight bytes of its length."""
    try:
        with path.open("rb") as file:
            return front_of(file)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def seal_within(header: bytes, path: Path) -> str:
    """The checksum that a head carries; "" if another program wrote it."""
    try:
        seal = json.loads(header[8:])[METADATA].get(CRC, "")
    except (ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    except (KeyError, TypeError, AttributeError):
        return ""  # written by another program
    return seal if isinstance(seal, str) else ""


def refuse_unsavable(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not dense numbers of a dtype that the format has."""
    kind = None
    if tensor.layout != torch.strided:
        kind = f"is {str(tensor.layout).removeprefix('torch.')}"
    elif tensor.is_meta:
        kind = 'is on the device "meta" and holds no numbers'
    elif tensor.is_quantized or tensor.dtype not in NAMES:
        kind = f"has the dtype {str(tensor.dtype).removeprefix('torch.')}"
    elif getattr(type(tensor), _DISPATCH, None) is not getattr(Tensor, _DISPATCH, None):
        kind = f"is {a_kind(tensor)}, whose numbers lie elsewhere"
    if kind is not None:
        raise CheckpointError(
            f"'{name}' cannot be saved: it {kind}, and a checkpoint holds dense tensors of the "
            "dtypes of safetensors. Keep it outside of the model's state dict."
        )
