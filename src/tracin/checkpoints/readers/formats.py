"""From a path to what it holds: which reader belongs to which kind of file or folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tracin.checkpoints.rate import FileInfo, rate_within
from tracin.checkpoints.readers.hugging_face import (
    CONFIG_FILE,
    INDEX_SUFFIX,
    WEIGHT_FILES,
    found_weight_file,
    hugging_face_rate,
    is_hugging_face,
    read_hugging_face,
    refuse_divided,
    shards,
    weight_file,
)
from tracin.checkpoints.readers.lightning import is_lightning, lightning_rate
from tracin.checkpoints.readers.peft import ADAPTER_FILES, inner_adapters
from tracin.checkpoints.readers.safetensors import read_shapes
from tracin.checkpoints.readers.torch import look_into, read_torch
from tracin.checkpoints.readers.trainer_optimizer import trainer_optimizer_kind
from tracin.checkpoints.readers.weight_file import read_weight_file
from tracin.checkpoints.state_dict import refuse_other_kinds, weights_within
from tracin.errors import CheckpointError
from tracin.plain_text import listed

SAFETENSORS = ".safetensors"
TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # best.pth.tar is torch's, not an archive of tar


def is_checkpoint(path: Path) -> bool:
    """Whether this path, by its name, is one checkpoint."""
    if path.is_dir():
        return is_hugging_face(path)
    return suffix_of(path) in (SAFETENSORS, *TORCH)


def suffix_of(path: Path) -> str:
    """How a file's name ends, in small letters."""
    return path.suffix.lower()


def is_adapter(path: Path) -> bool:
    """Whether it holds the trained part of a model alone, as PEFT saves it."""
    file = weight_file(path) if path.is_dir() else path
    return file is not None and file.name in ADAPTER_FILES


def is_saved_pretrained(path: Path) -> bool:
    """Whether `save_pretrained` wrote it, under names and in layouts of transformers' choice."""
    file = weight_file(path) if path.is_dir() else path
    return file is not None and file.name in WEIGHT_FILES and (file.parent / CONFIG_FILE).is_file()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of one checkpoint, on the CPU, under the names of the bare model."""
    known(path)
    weights = read_hugging_face(path) if path.is_dir() else read_weight_file(path)
    refuse_other_kinds(weights, str(path))
    return weights


def read_recorded(path: Path) -> FileInfo:
    """What a checkpoint says of its learning rate and step; finds bad files before work starts."""
    known(path)
    if path.is_dir():
        found_weight_file(path)
        return replace(hugging_face_rate(path), optimizer_kind=trainer_optimizer_kind(path))
    if suffix_of(path) == SAFETENSORS:
        read_shapes(path)
        return FileInfo()
    content = look_into(path)
    weights_within(content, str(path))
    try:
        return recorded_in(content)
    except RuntimeError:  # a rate or a step that is a tensor, of which the shape alone was read
        return recorded_in(read_torch(path))


def recorded_in(content: Any) -> FileInfo:
    """The rate and step in what `torch.save` wrote."""
    return lightning_rate(content) if is_lightning(content) else rate_within(content)


def files_of(path: Path) -> list[Path]:
    """The files that hold a checkpoint's weights."""
    if not path.is_dir():
        return [path]
    file = found_weight_file(path)
    if file.name in ADAPTER_FILES:
        return [file, *inner_adapters(path).values()]
    return [file, *shards(file)] if file.name.endswith(INDEX_SUFFIX) else [file]


def known(path: Path) -> None:
    """Refuse what is not there, and what no reader is for."""
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist. Checkpoints are looked for from {Path.cwd()}."
        )
    if not is_checkpoint(path):
        refuse_divided(path)
        raise CheckpointError(
            f"{path} is not a kind of checkpoint that can be read: a file ending in "
            f"{listed((SAFETENSORS, *TORCH), most=9)}, or a checkpoint folder of Hugging Face."
        )
