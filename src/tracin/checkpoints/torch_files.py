"""Files of `torch.save`, read without ever running the code that a pickle can hold."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from tracin.errors import CheckpointError, CheckpointWarning

SAFE_SINCE = (2, 10)


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, tensors on the CPU and left on the disk until they are used.

    Raises:
        CheckpointError: The file holds code, is truncated, or is of another kind.
    """
    if torch_version() < SAFE_SINCE:
        warnings.warn(
            f"torch {torch.__version__} reads {path.name}: releases before 2.10 have known ways "
            "around weights_only=True. Update torch, or keep weights as .safetensors.",
            CheckpointWarning,
            stacklevel=2,
        )
    try:
        return read(path)
    except CheckpointError:
        raise
    except Exception as error:
        # torch raises whatever its parser stumbles over: EOFError, KeyError, struct.error, ...
        if code := code_within(error):
            raise CheckpointError(
                f"{path} holds {code} that would run on loading, so it was not loaded. Save the "
                "weights only, by torch.save(model.state_dict(), path) or as .safetensors."
            ) from error
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}): it is "
            "truncated, damaged or was not written by torch.save. Write it again, or leave it out."
        ) from error


def read(path: Path) -> Any:
    """`torch.load`, with the file mapped into memory where its format allows."""
    with warnings.catch_warnings():
        # What torch warns of here, a foreign pickle or a TorchScript program, it then refuses.
        warnings.simplefilter("ignore", UserWarning)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            # Files from before torch 1.6, and some file systems, cannot be mapped.
            if "mmap" not in str(error):
                raise
        return torch.load(path, map_location="cpu", weights_only=True)


def code_within(error: Exception) -> str:
    """How to call the code that torch refused to run, or nothing where it refused none."""
    message = str(error)
    if "TorchScript" in message:
        return "a TorchScript program, code"
    if not isinstance(error, pickle.UnpicklingError):
        return ""
    if named := re.search(r"GLOBAL ([\w.]+)", message):
        return f"code ({named.group(1)})"
    if "Unsupported operand" in message or "Unsupported class" in message:
        return "a pickle that torch.save did not write, which may have code"
    return ""


def first_line(error: Exception) -> str:
    """The gist of a long message."""
    return (str(error).strip().splitlines() or ["no more is known"])[0][:200]


def torch_version() -> tuple[int, int]:
    """The major and minor version of torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
