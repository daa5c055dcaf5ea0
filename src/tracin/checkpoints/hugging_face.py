"""Checkpoint folders of Hugging Face's Trainer: weights, perhaps in shards, and the logged rate."""

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from tracin.checkpoints.rate import number
from tracin.checkpoints.safetensors_files import read_safetensors
from tracin.checkpoints.state_dicts import Recorded, recorded, weights_within, whole
from tracin.checkpoints.torch_files import read_torch
from tracin.errors import CheckpointError

# In the order in which Hugging Face itself looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
STATE_FILE = "trainer_state.json"


def is_hugging_face(folder: Path) -> bool:
    """Whether this folder is one checkpoint."""
    return step_of(folder) is not None or weight_file(folder) is not None


def step_of(folder: Path) -> int | None:
    """The step in the name `checkpoint-120`."""
    named = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(named.group(1)) if named and folder.is_dir() else None


def weight_file(folder: Path) -> Path | None:
    """The file that holds the weights, or lists the shards that do."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def found_weight_file(folder: Path) -> Path:
    """The weight file of a folder that must have one.

    Raises:
        CheckpointError: It has none.
    """
    file = weight_file(folder)
    if file is None:
        adapter = next(iter(sorted(folder.glob("adapter_model.*"))), None)
        held = (
            f"it holds {adapter.name}, an adapter alone: save the whole model, "
            "model.state_dict(), instead"
            if adapter
            else "point to the folder that has one of them"
        )
        raise CheckpointError(f"{folder} has no weights ({', '.join(WEIGHT_FILES)}): {held}.")
    return file


def read_hugging_face(folder: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint folder, on the CPU.

    Raises:
        CheckpointError: The weights, or one of their shards, are missing or unreadable.
    """
    file = found_weight_file(folder)
    if not file.name.endswith(".index.json"):
        return read_shard(file)
    weights: dict[str, Tensor] = {}
    for shard in shards(file):
        weights |= read_shard(shard)
    return weights


def shards(index: Path) -> list[Path]:
    """The files that an index lists.

    Raises:
        CheckpointError: One of them is missing.
    """
    files = read_json(index).get("weight_map", {}).values()
    paths = [index.parent / name for name in dict.fromkeys(files)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{index} lists {missing[0]}, which is not there: {len(missing)} of {len(paths)} "
            "shards are missing. Copy the whole folder, or leave this checkpoint out."
        )
    return paths


def read_shard(file: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    return weights_within(read_torch(file), str(file))


def hugging_face_rate(folder: Path) -> Recorded:
    """The learning rate that the Trainer logged at this checkpoint's step, or last before it.

    `optimizer.pt` is not asked: it holds the rate of the step to come.
    """
    file = folder / STATE_FILE
    if not file.is_file():
        return Recorded(None, step_of(folder), f"it has no {STATE_FILE}")
    state = read_json(file)
    step = whole(state.get("global_step"))
    step = step_of(folder) if step is None else step
    logged = [
        (at, rate)
        for entry in state.get("log_history", ())
        if (rate := number(entry.get("learning_rate"))) is not None
        and (at := whole(entry.get("step"))) is not None
        and (step is None or at <= step)
    ]
    if not logged:
        return Recorded(None, step, f"its {STATE_FILE} logs no learning rate up to its step")
    at, rate = max(logged, key=lambda entry: entry[0])
    return recorded(rate, step, f"the rate that its {STATE_FILE} logs at step {at}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: It does not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): it is truncated or damaged. Write it again, or "
            "leave this checkpoint out."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, but holds a list or a value.")
    return content
