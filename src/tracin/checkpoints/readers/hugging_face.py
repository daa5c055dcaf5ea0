"""Checkpoint folders of Hugging Face: their weights, and the learning rate of their last step."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tracin.checkpoints.rate import FileInfo, number, recorded, whole_number
from tracin.checkpoints.readers.peft import ADAPTER_FILES, adapter_file, inner_adapter_file
from tracin.checkpoints.readers.weight_file import read_weight_file
from tracin.errors import CheckpointError
from tracin.files import read_json

# In the order in which Hugging Face itself looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model_fsdp.bin",  # accelerate's name for the whole weights of an FSDP model
)
INDEX_SUFFIX = ".index.json"
STATE_FILE = "trainer_state.json"
CONFIG_FILE = "config.json"
# Releases before this one logged a step's rate after the scheduler had moved to the next step.
TRUE_RATE_SINCE = (4, 51)


def refuse_divided(folder: Path) -> None:
    """Refuse a folder that holds parts of weights, by the name of the tool that merges them."""
    if advice := merge_advice(folder):
        raise CheckpointError(
            f"{folder} holds weights in parts, as {advice}. Then give the file or folder that it "
            "writes."
        )


def merge_advice(folder: Path) -> str:
    """Who wrote parts of weights to this folder and what merges them, or nothing."""
    if not folder.is_dir():
        return ""
    parts = [*folder.glob("*_optim_states.pt"), *folder.glob("*_model_states.pt")]
    if (folder / "zero_to_fp32.py").is_file() or any(folder.glob("global_step*/")) or parts:
        return (
            "DeepSpeed saves them: merge them by python zero_to_fp32.py . output in this folder "
            "(the script lies there, and in deepspeed.utils)"
        )
    if inner := next(folder.glob("pytorch_model_fsdp_*/"), None):
        return (
            "accelerate saves them under FSDP: merge them by accelerate merge-weights "
            f"{inner} {folder}"
        )
    if (folder / ".metadata").is_file():
        return (
            "torch.distributed.checkpoint saves them: merge them by torch.distributed.checkpoint."
            f"format_utils.dcp_to_torch_save({str(folder)!r}, 'weights.pt')"
        )
    return ""


@dataclass(frozen=True)
class LoggedRate:
    """A learning rate in the log of a Trainer.

    Attributes:
        step: The step in which it was used, counted from 1 as the Trainer does.
        rate: The rate.
    """

    step: int
    rate: float


def is_hugging_face(folder: Path) -> bool:
    """Whether this folder is one checkpoint."""
    return step_of(folder) is not None or weight_file(folder) is not None


def step_of(folder: Path) -> int | None:
    """The step in the name `checkpoint-120`."""
    named = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(named.group(1)) if named and folder.is_dir() else None


def weight_file(folder: Path) -> Path | None:
    """The file that holds the weights or an adapter, or lists the shards that do."""
    whole_model = (folder / name for name in WEIGHT_FILES)
    found = next((file for file in whole_model if file.is_file()), None) or adapter_file(folder)
    if found is None and step_of(folder) is not None:
        return inner_adapter_file(folder)
    return found


def found_weight_file(folder: Path) -> Path:
    """The weight file of a folder that must have one."""
    file = weight_file(folder)
    if file is None:
        refuse_divided(folder)
        known = ", ".join([*WEIGHT_FILES, *ADAPTER_FILES])
        raise CheckpointError(
            f"{folder} has no weights ({known}): point to the folder that has one of them."
        )
    return file


def read_hugging_face(folder: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint folder, on the CPU."""
    refuse_quantised(folder)
    file = found_weight_file(folder)
    if not file.name.endswith(INDEX_SUFFIX):
        return read_weight_file(file)
    weights: dict[str, Tensor] = {}
    for shard in shards(file):
        weights |= read_weight_file(shard)
    return weights


def shards(index: Path) -> list[Path]:
    """The files that an index lists."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(map(is_file_name, files.values())):
        raise CheckpointError(
            f"{index} must hold a weight_map, from names to files in its own folder. Copy the "
            "folder again, or leave this checkpoint out."
        )
    paths = [index.parent / name for name in dict.fromkeys(files.values())]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{index} lists {missing[0]}, which is not there: {len(missing)} of {len(paths)} "
            "shards are missing. Copy the whole folder, or leave this checkpoint out."
        )
    return paths


def is_file_name(name: Any) -> bool:
    """Whether this names a file in the same folder, and none elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def refuse_quantised(folder: Path) -> None:
    """Quantised weights cannot be put into a model that has gradients."""
    file = folder / CONFIG_FILE
    method = read_json(file).get("quantization_config") if file.is_file() else None
    if method:
        named = method.get("quant_method") if isinstance(method, dict) else method
        raise CheckpointError(
            f"{folder} holds quantised weights ({named}), which have no gradients. Give the "
            "checkpoints in floating point, model.dequantize() and save_pretrained."
        )


def hugging_face_rate(folder: Path) -> FileInfo:
    """The learning rate that the Trainer used in this checkpoint's step, or last before it.

    `optimizer.pt` is not read: it holds the next step's rate.
    """
    file = folder / STATE_FILE
    step = saved_step(folder)
    if not file.is_file():
        return FileInfo(None, step, f"it has no {STATE_FILE}")
    found = logged_rate(folder)
    if found is None:
        return FileInfo(None, step, f"its {STATE_FILE} logs no learning rate up to its step")
    return recorded(found.rate, step, f"the rate that its {STATE_FILE} logs of step {found.step}")


def saved_step(folder: Path) -> int | None:
    """How many steps came before a checkpoint, by its own account or else by its name."""
    file = folder / STATE_FILE
    step = whole_number(read_json(file).get("global_step")) if file.is_file() else None
    return step_of(folder) if step is None else step


def logged_rate(folder: Path) -> LoggedRate | None:
    """The last rate that a checkpoint's log has of a step up to its own; None where it has none."""
    file = folder / STATE_FILE
    if not file.is_file():
        return None
    step, late = saved_step(folder), lateness(folder)
    history = read_json(file).get("log_history")
    logged = [
        LoggedRate(at + late, rate)
        for entry in (history if isinstance(history, list) else ())
        if isinstance(entry, dict)
        and (rate := number(entry.get("learning_rate"))) is not None
        and (at := whole_number(entry.get("step"))) is not None
        and (step is None or at + late <= step)
    ]
    return max(logged, key=lambda one: one.step, default=None)


def lateness(folder: Path) -> int:
    """By how many steps the logged rates are ahead of the step that they are logged at.

    The configuration names the release that wrote a checkpoint. Where it does not, as next to
    an adapter alone, the log is taken for one of today's.
    """
    file = folder / CONFIG_FILE
    version = read_json(file).get("transformers_version") if file.is_file() else None
    named = re.match(r"(\d+)\.(\d+)", str(version))
    if not named:
        return 0
    return 1 if (int(named.group(1)), int(named.group(2))) < TRUE_RATE_SINCE else 0
