"""What a checkpoint folder of Hugging Face holds of its optimizer: `optimizer.pt`."""

from pathlib import Path
from typing import Any

from tracin.checkpoints.adam_kind import adam_kind
from tracin.checkpoints.readers.torch import look_into
from tracin.errors import CheckpointError

OPTIMIZER_FILE = "optimizer.pt"


def trainer_optimizer(folder: Path) -> dict[str, Any] | None:
    """The optimizer's state dict with the shapes of its tensors alone; None where none is readable.

    Scores do not depend on this file unless its moments are asked for, so that one which holds code
    or is damaged is no error here.
    """
    file = folder / OPTIMIZER_FILE
    if not file.is_file():
        return None
    try:
        content = look_into(file)
    except CheckpointError:
        return None
    return content if isinstance(content, dict) else None


def trainer_optimizer_kind(folder: Path) -> str:
    """Say "Adam" or "AdamW" where the file is there and is theirs, else ""."""
    content = trainer_optimizer(folder)
    return "" if content is None else adam_kind([content])
