"""Weights in `.safetensors` files: tensors and names, nothing that can run."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tracin.checkpoints.safetensors_header import ALIASES, Header
from tracin.checkpoints.sealed_tensors import CRC, check_seal, refuse_unsavable, write_sealed
from tracin.errors import CheckpointError


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, on the CPU, in memory that the file does not share.

    Raises:
        CheckpointError: The file is truncated, damaged, or of another kind.
    """
    try:
        with path.open("rb") as file:
            header = Header.read(file)
            if CRC in header.metadata:
                check_seal(path)
            weights = {name: entry.tensor(file) for name, entry in header.entries.items()}
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    return weights | {alias: weights[name] for alias, name in header.aliases.items()}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes alone, from the head of the file: name -> shape."""
    try:
        with path.open("rb") as file:
            header = Header.read(file)
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    shapes = {name: entry.shape for name, entry in header.entries.items()}
    return shapes | {alias: shapes[name] for alias, name in header.aliases.items()}


def write_safetensors(weights: Mapping[str, Tensor], path: Path) -> str:
    """Write a state dict whole or not at all; a tensor with two names is stored once.

    Returns:
        The file's checksum.

    Raises:
        CheckpointError: A tensor is of a kind that the format cannot hold.
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
    return write_sealed(kept, path, {"format": "pt", ALIASES: json.dumps(aliases)})


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
