"""How a model applies its adapters, which no weight says: by which factor, and whether at all."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch.nn import Module

from tracin.checkpoints.readers.safetensors import read_metadata, unreadable
from tracin.checkpoints.state_dict import bare_name
from tracin.errors import CheckpointError, UnsupportedModelError
from tracin.plain_text import listed

KEY = "tracin.adapter_scales"  # in the metadata of a checkpoint's file


def adapter_scales(model: Module) -> dict[str, dict[str, float]]:
    """The factor of each adapter's product, alpha / rank of LoRA: module -> adapter -> factor."""
    layers = {
        name: getattr(module, "scaling", None)
        for name, module in model.named_modules()
        if hasattr(module, "adapter_layer_names")  # PEFT's: others may call anything "scaling"
    }
    return {
        bare_name(name): {str(adapter): float(factor) for adapter, factor in scales.items()}
        for name, scales in layers.items()
        if isinstance(scales, Mapping) and scales
    }


def scales_metadata(model: Module) -> dict[str, str]:
    """For the head of a file."""
    scales = adapter_scales(model)
    return {KEY: json.dumps(scales)} if scales else {}


def refuse_other_scales(model: Module, path: Path, name: str) -> None:
    """Refuse a model that applies an adapter by another factor than in training.

    Args:
        model: The model that gets the weights.
        path: A `.safetensors` file; one without factors fits every model.
        name: What messages call the checkpoint.

    Raises:
        CheckpointError: A factor differs, or the file is damaged.
    """
    text = read_metadata(path).get(KEY)
    if text is None:
        return
    ours = adapter_scales(model)
    try:
        differing = [
            f"{module} by {factor:g} there and {ours[module][adapter]:g} here"
            for module, scales in json.loads(text).items()
            for adapter, factor in scales.items()
            if ours.get(module, {}).get(adapter, factor) != factor
        ]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise unreadable(path, error) from error
    if differing:
        raise CheckpointError(
            f"{name} was trained with adapters that are multiplied by another factor: "
            f"{listed(differing)}. Give lora_alpha, r and use_rslora as in training."
        )


def refuse_merged(model: Module) -> None:
    """Refuse a model whose forward pass leaves its adapters out, since they are in its weights.

    Raises:
        UnsupportedModelError: An adapter is merged.
    """
    merged = [name for name, one in model.named_modules() if getattr(one, "merged_adapters", None)]
    if merged:
        raise UnsupportedModelError(
            f"{len(merged)} layers, such as '{merged[0]}', have their adapters merged into the "
            "base's weights, so that a forward pass leaves the adapters' own out. Take them out "
            "again: model.unmerge_adapter()."
        )
