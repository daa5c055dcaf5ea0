"""PEFT's adapters: files with the trained part alone, under names without the adapter's own."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor
from torch.nn import Module

from tracin.checkpoints.names import bare_name
from tracin.errors import CheckpointError

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."


def adapter_file(folder: Path) -> Path | None:
    """The adapter in a folder, if there is one."""
    return next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)


def inner_adapter_file(folder: Path) -> Path | None:
    """The adapter in a folder within: PEFT puts one there that is not called "default"."""
    found = [adapter_file(inner) for inner in sorted(folder.iterdir()) if inner.is_dir()]
    files = [file for file in found if file is not None]
    return files[0] if len(files) == 1 else None


def live_names(model: Module, weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """An adapter's weights under the names that they have in a model with this adapter.

    `q_proj.lora_A.weight` is `q_proj.lora_A.default.weight` in the model, and `score.weight`, of a
    part that is trained whole, is `score.modules_to_save.default.weight`. Names that fit nothing
    are left as they are.

    Raises:
        CheckpointError: The model has no adapter, or none that can be trained.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise CheckpointError(
            f"{name} is a PEFT adapter, the trained part alone, but the model has none: give the "
            "model that it was trained in, peft.PeftModel.from_pretrained(base, folder, "
            "is_trainable=True), or save the whole model, model.state_dict()."
        )
    # An adapter that is frozen was not trained: with several in the model, this tells them apart.
    trained = [key for key, one in model.named_parameters() if one.requires_grad]
    live = saved_names(trained, adapters)
    if not live:
        raise CheckpointError(
            f"{name} is a PEFT adapter, but no adapter of the model is trainable: load it with "
            "peft.PeftModel.from_pretrained(base, folder, is_trainable=True)."
        )
    return {live.get(bare_name(key), key): values for key, values in weights.items()}


def adapters_of(model: Module) -> set[str]:
    """The names of the adapters in a model, or in one of its parts."""
    found: set[str] = set()
    for module in model.modules():
        config = getattr(module, "peft_config", None)
        if isinstance(config, Mapping):
            found |= {str(name) for name in config}
    return found


def saved_names(names: Iterable[str], adapters: Iterable[str]) -> dict[str, str]:
    """The name in an adapter's file -> the name in the model.

    >>> saved_names(["base_model.model.fc.lora_A.default.weight"], ["default"])
    {'base_model.model.fc.lora_A.weight': 'base_model.model.fc.lora_A.default.weight'}
    """
    found: dict[str, str] = {}
    for name in names:
        parts = bare_name(name).split(".")
        for adapter in adapters:
            if adapter not in parts:
                continue
            place = len(parts) - 1 - parts[::-1].index(adapter)
            before = parts[:place]
            if before[-1:] == ["modules_to_save"]:
                before = before[:-1]
            saved = ".".join([*before, *parts[place + 1 :]])
            # transformers' own add_adapter leaves the prefix away in the model, and saves it.
            found[saved if saved.startswith(PREFIX) else PREFIX + saved] = name
    return found
