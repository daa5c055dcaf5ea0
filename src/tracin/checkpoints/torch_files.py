"""Files of `torch.save`, read without ever running the code that a pickle can hold."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from tracin.checkpoints.stamps import stamp_of
from tracin.checkpoints.state_dicts import listed
from tracin.checkpoints.torch_archives import refuse_other_checksums, refuse_unsound
from tracin.errors import CheckpointError, CheckpointWarning

SAFE_SINCE = (2, 10)
# Names of values that people save beside weights, and that run nothing when they are loaded.
PLAIN_VALUES = (
    "argparse.Namespace",
    "numpy._core.multiarray.",
    "numpy.core.multiarray.",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.",
    "datetime.",
    "builtins.slice",
)


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, tensors on the CPU, in memory that the file does not share.

    Raises:
        CheckpointError: The file holds code, is truncated, damaged, or of another kind.
    """
    warn_of_old_torch(path)
    content = read(path, "cpu")
    refuse_other_checksums(path, stamp_of([path]))
    return content


def look_into(path: Path) -> Any:
    """What `torch.save` wrote, with the shapes of tensors alone.

    Raises:
        CheckpointError: The file holds code, is truncated, damaged, or of another kind.
    """
    warn_of_old_torch(path)
    return read(path, "meta")


def warn_of_old_torch(path: Path) -> None:
    """Say that a release of torch could run what a hostile file holds."""
    if torch_version() < SAFE_SINCE:
        warnings.warn(
            f"torch {torch.__version__} reads {path.name}: releases before 2.10 have known ways "
            "around weights_only=True. Update torch, or keep weights as .safetensors.",
            CheckpointWarning,
            stacklevel=3,
        )


def read(path: Path, place: str) -> Any:
    """`torch.load` of a file that was looked at before, with errors in words."""
    try:
        with warnings.catch_warnings():
            # What torch warns of here, a foreign pickle or a TorchScript program, it then refuses.
            warnings.simplefilter("ignore", UserWarning)
            refuse_unsound(path)
            # Never mapped: a training that writes the file anew would end this process.
            return torch.load(path, map_location=place, weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        # torch raises whatever its parser stumbles over: EOFError, KeyError, struct.error, ...
        code = code_within(error)
        if code and (values := plain_values(path)):
            raise CheckpointError(
                f"{path} holds values besides weights, {listed(values)}, which torch.load refuses "
                "unless they are allowed. If you trust the file, put the call into: with "
                f"torch.serialization.safe_globals([{', '.join(values)}]). Or save the weights "
                "only, by torch.save(model.state_dict(), path)."
            ) from error
        if code:
            raise CheckpointError(
                f"{path} holds {code} that would run on loading, so it was not loaded. Save the "
                "weights only, by torch.save(model.state_dict(), path) or as .safetensors."
            ) from error
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}): it is "
            "truncated, damaged or was not written by torch.save. Write it again, or leave it out."
        ) from error


def plain_values(path: Path) -> list[str]:
    """What stands in the way of loading, if it is known to run nothing: settings, NumPy numbers."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of a file from before torch 1.6, or a damaged one, none can be told
        return []
    if not all(name.startswith(PLAIN_VALUES) for name in names):
        return []
    # Of NumPy's numbers torch asks for their type as well, but does not list it.
    return names + ["numpy.dtypes.Float64DType"] * ("numpy.dtype" in names)


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
