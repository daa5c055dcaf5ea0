"""From a path to what it holds: which reader belongs to which kind of file or folder."""

from pathlib import Path

from torch import Tensor

from tracin.checkpoints.adapters import ADAPTER_FILES
from tracin.checkpoints.hugging_face import (
    CONFIG_FILE,
    WEIGHT_FILES,
    found_weight_file,
    hugging_face_rate,
    is_hugging_face,
    read_hugging_face,
    weight_file,
)
from tracin.checkpoints.lightning import is_lightning, lightning_rate
from tracin.checkpoints.names import without_wrappers
from tracin.checkpoints.safetensors_files import read_safetensors, read_shapes
from tracin.checkpoints.state_dicts import Recorded, listed, rate_within, weights_within
from tracin.checkpoints.torch_files import read_torch
from tracin.errors import CheckpointError

SAFETENSORS = ".safetensors"
TORCH = (".pt", ".pth", ".bin", ".ckpt")


def is_checkpoint(path: Path) -> bool:
    """Whether this path, by its name, is one checkpoint."""
    if path.is_dir():
        return is_hugging_face(path)
    return path.suffix in (SAFETENSORS, *TORCH)


def is_adapter(path: Path) -> bool:
    """Whether it holds the trained part of a model alone, as PEFT saves it."""
    file = weight_file(path) if path.is_dir() else path
    return file is not None and file.name in ADAPTER_FILES


def is_saved_pretrained(path: Path) -> bool:
    """Whether `save_pretrained` wrote it, under names and in layouts of transformers' choice."""
    file = weight_file(path) if path.is_dir() else path
    return file is not None and file.name in WEIGHT_FILES and (file.parent / CONFIG_FILE).is_file()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of one checkpoint, on the CPU, under the names of the bare model.

    Raises:
        CheckpointError: It is missing, unsafe to load or unreadable.
    """
    known(path)
    if path.is_dir():
        return without_wrappers(read_hugging_face(path))
    if path.suffix == SAFETENSORS:
        return without_wrappers(weights_within(read_safetensors(path), str(path)))
    return weights_within(read_torch(path), str(path))


def read_recorded(path: Path) -> Recorded:
    """What a checkpoint says of its learning rate and step; finds bad files before work starts.

    Raises:
        CheckpointError: It is missing, unsafe to load or unreadable.
    """
    known(path)
    if path.is_dir():
        found_weight_file(path)
        return hugging_face_rate(path)
    if path.suffix == SAFETENSORS:
        read_shapes(path)
        return Recorded()
    content = read_torch(path)
    weights_within(content, str(path))
    return lightning_rate(content) if is_lightning(content) else rate_within(content)


def known(path: Path) -> None:
    """Refuse what is not there, and what no reader is for."""
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist. Checkpoints are looked for from {Path.cwd()}."
        )
    if not is_checkpoint(path):
        raise CheckpointError(
            f"{path} is no kind of checkpoint that can be read: a file ending in "
            f"{listed((SAFETENSORS, *TORCH), most=9)}, or a checkpoint folder of Hugging Face."
        )
