"""What an adapter's folder says of the factor that its product is multiplied by."""

import json
from pathlib import Path
from typing import Any

from tracin.checkpoints.readers.safetensors import unreadable
from tracin.errors import CheckpointError
from tracin.plain_text import listed

CONFIG = "adapter_config.json"
# What PEFT makes the factor of, beside the rank, which shapes show.
OPTIONS = ("lora_alpha", "alpha", "use_rslora", "alpha_pattern")


def refuse_other_options(config: Any, folder: Path, adapter: str, name: str) -> None:
    """Refuse an adapter's folder whose configuration gives another factor than the model's.

    Args:
        config: PEFT's configuration of the adapter in the model.
        folder: Where the adapter's file lies.
        adapter: The adapter.
        name: What messages call the checkpoint.

    Raises:
        CheckpointError: An option differs, or the configuration cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        return
    try:
        saved = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise unreadable(path, error) from error
    differing = [
        f"{option}={saved[option]!r} there and {option}={getattr(config, option)!r} here"
        for option in OPTIONS
        if option in saved
        and hasattr(config, option)
        and (saved[option] or None) != (getattr(config, option) or None)
    ]
    if differing:
        raise CheckpointError(
            f"{name} was trained with other options of the adapter {adapter!r}: "
            f"{listed(differing)}. Load it with peft.PeftModel.from_pretrained(base, folder, "
            "is_trainable=True), which takes them from the folder."
        )
