"""Weights in `.safetensors` files: tensors and names, nothing that can run."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tracin.checkpoints.sealed_tensors import check_seal, refuse_unsavable, write_sealed
from tracin.errors import CheckpointError

# The file format wants every tensor once: further names of one tensor stand in the metadata.
ALIASES = "tracin.aliases"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, on the CPU.

    Raises:
        CheckpointError: The file is truncated or damaged, or is of another kind.
    """
    check_seal(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            aliases = json.loads((file.metadata() or {}).get(ALIASES, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from error
    for alias, name in aliases.items():
        weights[alias] = weights[name]
    return weights


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes alone, from the head of the file: name -> shape."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            shapes = {
                name: tuple(file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118
            }
            aliases = json.loads((file.metadata() or {}).get(ALIASES, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return shapes | {alias: shapes[name] for alias, name in aliases.items()}


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
    return CheckpointError(
        f"{path} cannot be read as safetensors ({error}): it is truncated, damaged or of another "
        "kind. Write it again, or leave it out."
    )
