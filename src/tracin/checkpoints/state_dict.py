"""The state dict in a saved dict, under the names of the bare model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from tracin.errors import CheckpointError
from tracin.plain_text import first_few, listed
from tracin.wrappers import COMPILED

Value = TypeVar("Value")
DATA_PARALLEL = "module."
WRAPPED = re.compile(r"\A(?:module\.)+")
STATE_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "model_state",
    "net",
    "params",
    "weights",
    "module",
)
# Lightning's WeightAveraging puts the average under "state_dict", and here what was trained.
TRAINED_KEY = "current_model_state"
EXTRA_STATE = "_extra_state"  # how torch ends the names of what modules save besides tensors
AVERAGE_COUNT = "n_averaged"


def bare_name(name: str) -> str:
    """The name a parameter has in the model itself, without the wrappers around it.

    `torch.compile` puts `_orig_mod.` before a name (or within it, where a part of the model was
    compiled), data parallel training puts `module.` before it; they come in either order.

    >>> bare_name("module._orig_mod.encoder._orig_mod.weight")
    'encoder.weight'
    """
    bare = ".".join(part for part in name.split(".") if part != COMPILED)
    return WRAPPED.sub("", bare, count=1)


def without_wrappers(named: Mapping[str, Value]) -> dict[str, Value]:
    """The same values under bare names, or under their own where bare ones would collide."""
    bare = {bare_name(name): value for name, value in named.items()}
    return bare if len(bare) == len(named) else dict(named)


def weights_within(content: Any, name: str) -> dict[str, Tensor]:
    """The state dict in `content`, or `content` itself, without the prefixes of wrappers."""
    if isinstance(content, Module):
        raise CheckpointError(f"{name} is a whole model: give its state dict, model.state_dict().")
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{name} must hold a state dict (parameter name -> tensor), but it holds a "
            f"{type(content).__name__}. Save model.state_dict()."
        )
    inner = state_dict_within(content, name)
    weights = {str(key): value for key, value in without_extra_state(inner).items()}
    others = [key for key, value in weights.items() if not isinstance(value, Tensor)]
    if others or not weights:
        problem = f"holds {listed(others)}, no tensor" if others else "is empty"
        raise CheckpointError(
            f"{name} must hold a state dict (parameter name -> tensor), by itself or under "
            f"{listed(STATE_KEYS, most=9)}, but it {problem}. {advice(content, name)}"
        )
    return without_wrappers(without_count(weights))


def without_extra_state(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """A state dict without what `Module.get_extra_state` adds, which is not a weight."""
    return {
        key: value
        for key, value in state.items()
        if value is not None and str(key).rpartition(".")[2] != EXTRA_STATE
    }


def state_dict_within(content: Mapping[Any, Any], name: str) -> Mapping[Any, Any]:
    """The state dict under one of the usual keys, or `content` itself."""
    if holds_tensors(content.get(TRAINED_KEY)):
        return content[TRAINED_KEY]
    keys = [key for key in STATE_KEYS if holds_tensors(content.get(key))]
    if len(keys) > 1:
        raise CheckpointError(
            f"{name} holds a state dict under each of {listed(keys)}. Give the one that was "
            f"trained: torch.load(path, weights_only=True)[{keys[0]!r}]."
        )
    empty = [key for key in STATE_KEYS if isinstance(content.get(key), Mapping)]
    return content[(keys or empty)[0]] if keys or empty else content


def advice(content: Mapping[Any, Any], name: str) -> str:
    """What to pass instead of a dict without a state dict."""
    keys = [str(key) for key, value in content.items() if holds_tensors(value)]
    if keys:
        return (
            f"There are state dicts under {listed(keys)}: give the one that was trained, "
            f"torch.load(path, weights_only=True)[{keys[0]!r}]."
        )
    return "Save model.state_dict()."


def holds_tensors(value: Any) -> bool:
    """Whether this may be a state dict."""
    return isinstance(value, Mapping) and any(isinstance(one, Tensor) for one in value.values())


def without_count(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in an `AveragedModel`'s state dict, without the number of models in it."""
    others = [key for key in weights if key != AVERAGE_COUNT]
    is_average = all(key.startswith(DATA_PARALLEL) for key in others)
    return {key: weights[key] for key in others} if others and is_average else weights


def refuse_other_shapes(
    shapes: Iterable[tuple[str, Sequence[int], Sequence[int]]], name: str
) -> None:
    """Refuse tensors that differ in shape: (name, in the checkpoint, in the model)."""
    differing = [
        f"{key} is {list(theirs)} and not {list(ours)}"
        for key, theirs, ours in shapes
        if list(theirs) != list(ours)
    ]
    if differing:
        raise CheckpointError(
            f"{name} does not fit the model: {first_few(differing)}. Build the model as it was "
            "when these weights were saved."
        )


def refuse_other_kinds(weights: Mapping[str, Tensor], name: str) -> None:
    """Refuse tensors that are not plain numbers in memory."""
    for key, value in weights.items():
        if kind := other_kind(value):
            raise CheckpointError(
                f"{name} holds {key!r}, which {kind}. Weights must be dense tensors of numbers: "
                "save the state dict of the model as it was trained."
            )


def other_kind(value: Tensor) -> str:
    """What keeps a tensor from being plain numbers in memory, or nothing."""
    if is_lazy(value):
        return "has no shape yet (run one batch through the model first)"
    if value.is_nested:
        return "is a nested tensor"
    if value.is_quantized:
        return "is quantised"
    if value.is_meta:
        return 'is on the device "meta" and has no numbers'
    if value.layout is not torch.strided:
        return f"is sparse ({value.layout})"
    return ""
