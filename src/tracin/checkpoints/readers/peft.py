"""PEFT's adapters: files with the trained part alone, under names without the adapter's own."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Module

from tracin.checkpoints.readers.adapter_options import refuse_other_options
from tracin.checkpoints.readers.weight_file import read_weight_file
from tracin.checkpoints.state_dict import bare_name
from tracin.errors import CheckpointError
from tracin.plain_text import listed

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
FIRST = "default"  # the one adapter whose file lies in the folder itself
PROMPT = "prompt_embeddings"


def adapter_file(folder: Path) -> Path | None:
    """The adapter in a folder, if there is one."""
    return next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)


def inner_adapter_file(folder: Path) -> Path | None:
    """An adapter in a folder within: PEFT puts those there that are not called "default"."""
    return next(iter(inner_adapters(folder).values()), None)


def adapter_weights(
    model: Module, folder: Path, weights: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    """A checkpoint's adapters under the names that they have in the model that was trained.

    PEFT itself maps the names: `q_proj.lora_A.weight` is
    `q_proj.lora_A.default.weight` in the model, and a magnitude of DoRA loses `.weight` as well.
    Names that it does not know stay as they are.

    Args:
        model: The model, with the adapters that were trained.
        folder: The checkpoint's folder, in which adapters not called "default" have their own.
        weights: What the folder's own file holds.
        name: What messages call the checkpoint.
    """
    part = holder_of(model)
    if part is None:
        raise CheckpointError(
            f"{name} is a PEFT adapter, the trained part alone, but the model has none: give the "
            "model that it was trained in, peft.PeftModel.from_pretrained(base, folder, "
            "is_trainable=True), or save the whole model, model.state_dict()."
        )
    prefix, holder = part
    config: Mapping[str, Any] = holder.peft_config  # pyright: ignore[reportAssignmentType]
    # An adapter that is frozen was not trained: with several in the model, this tells them apart.
    trained = {one: live for one in config if is_trained(holder, live := saved_names(holder, one))}
    if not trained:
        raise CheckpointError(
            f"{name} is a PEFT adapter, but no adapter of the model is trainable: load it with "
            "peft.PeftModel.from_pretrained(base, folder, is_trainable=True)."
        )
    inner = inner_adapters(folder)
    saved_adapters = [*([FIRST] if adapter_file(folder) else []), *inner]
    result: dict[str, Tensor] = {}
    for adapter, live in trained.items():
        # A lone adapter may have been loaded under another name than it was saved under.
        is_lone = FIRST not in config and len(trained) == 1 and len(saved_adapters) == 1
        is_first = adapter == FIRST and FIRST in saved_adapters
        if adapter not in inner and not is_first and not is_lone:
            raise CheckpointError(
                f"{name} does not hold the adapter {adapter!r}, which is trainable in the model: "
                f"it holds {listed(saved_adapters)}. Freeze the adapters that were not trained, or "
                "give the folder of those that were."
            )
        saved = read_weight_file(inner[adapter]) if adapter in inner else weights
        refuse_computed(holder, adapter, saved, live, name)
        home = inner[adapter].parent if adapter in inner else folder
        refuse_other_options(config[adapter], home, adapter, name)
        result |= {
            prefix + live[bare_name(key)] if bare_name(key) in live else key: values
            for key, values in saved.items()
        }
    return result


def inner_adapters(folder: Path) -> dict[str, Path]:
    """The adapters that have a folder of their own: name -> file."""
    found = {inner.name: adapter_file(inner) for inner in sorted(folder.iterdir())}
    return {name: file for name, file in found.items() if file is not None}


def holder_of(model: Module) -> tuple[str, Any] | None:
    """The part of a model that has PEFT's adapters, perhaps all of it, with its names' prefix."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "peft_config", None), Mapping):
            return (f"{name}." if name else ""), module
    return None


def saved_names(holder: Any, adapter: str) -> dict[str, str]:
    """The name in an adapter's file -> the name in the model.

    PEFT is handed the model's own tensors, so that each comes back under the name of its file.
    """
    from peft import get_peft_model_state_dict

    live = holder.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in live.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of embeddings, which are looked for in any case
        saved = get_peft_model_state_dict(
            holder, state_dict=live, adapter_name=adapter, save_embedding_layers=True
        )
    found = {key: names[id(tensor)] for key, tensor in saved.items() if id(tensor) in names}
    prompt = f"prompt_encoder.{adapter}.embedding.weight"
    if PROMPT in saved and prompt in live and is_only(holder, adapter, prompt):
        found[PROMPT] = prompt
    # transformers' own add_adapter leaves the prefix away in the model, and saves it.
    is_bare = not any(key.startswith(PREFIX) for key in found)
    return {
        bare_name(PREFIX + key if is_bare and key != PROMPT else key): found[key] for key in found
    }


def is_only(holder: Any, adapter: str, name: str) -> bool:
    """Whether a prompt is the parameter itself, and not computed from others."""
    inner = holder.prompt_encoder[adapter]
    return [f"prompt_encoder.{adapter}.{one}" for one, _ in inner.named_parameters()] == [name]


def is_trained(holder: Any, live: Mapping[str, str]) -> bool:
    """Whether an adapter has a parameter that can be trained."""
    parameters = dict(holder.named_parameters(remove_duplicate=False))
    prompts = [name for name in parameters if name.startswith("prompt_encoder.")]
    names = [*live.values(), *(prompts if PROMPT not in live else ())]
    return any(name in parameters and parameters[name].requires_grad for name in names)


def refuse_computed(
    holder: Any, adapter: str, saved: Mapping[str, Tensor], live: Mapping[str, str], name: str
) -> None:
    """Refuse a prompt that was computed from trained weights which were not saved."""
    if PROMPT in saved and PROMPT not in live:
        kind = getattr(holder.peft_config[adapter], "peft_type", "this kind of prompt")
        raise CheckpointError(
            f"{name} holds the prompt that {getattr(kind, 'value', kind)} computed, not the "
            "parameters that were trained, which PEFT does not save. Record the whole model: "
            "tracin.Recorder, or torch.save(model.state_dict(), path)."
        )
