"""The state dict and the learning rate within the dicts that people save."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from tracin.checkpoints.names import DATA_PARALLEL, bare_name, without_wrappers
from tracin.checkpoints.rate import Rate, number
from tracin.errors import CheckpointError

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
RATE_KEYS = ("learning_rate", "lr")
STEP_KEYS = ("global_step", "step")
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim", "opt")
SCHEDULER_KEYS = ("scheduler", "lr_scheduler", "scheduler_state_dict", "sched")


@dataclass(frozen=True)
class FileInfo:
    """What a checkpoint's file says about itself.

    Attributes:
        learning_rate: The rate of the last step before it, or of each parameter then, if the
            file says.
        step: The number of optimizer steps before it, if the file says.
        no_rate: Why no learning rate is known.
    """

    learning_rate: Rate | None = None
    step: int | None = None
    no_rate: str = "it records none"


def weights_within(content: Any, name: str) -> dict[str, Tensor]:
    """The state dict in `content`, or `content` itself, without the prefixes of wrappers.

    Raises:
        CheckpointError: There is none, or several, or it holds something else than tensors.
    """
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
        held = f"holds {listed(others)}, no tensor" if others else "is empty"
        raise CheckpointError(
            f"{name} must hold a state dict (parameter name -> tensor), by itself or under "
            f"{listed(STATE_KEYS, most=9)}, but it {held}. {way_out(content, name)}"
        )
    return without_wrappers(without_count(weights))


def without_extra_state(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """A state dict without what `Module.get_extra_state` adds, which is no weight."""
    return {
        key: value
        for key, value in state.items()
        if value is not None and str(key).rpartition(".")[2] != EXTRA_STATE
    }


def state_dict_within(content: Mapping[Any, Any], name: str) -> Mapping[Any, Any]:
    """The state dict under one of the usual keys, or `content` itself.

    Raises:
        CheckpointError: Several of these keys have one.
    """
    if holds_tensors(content.get(TRAINED_KEY)):
        return content[TRAINED_KEY]
    found = [key for key in STATE_KEYS if holds_tensors(content.get(key))]
    if len(found) > 1:
        raise CheckpointError(
            f"{name} holds a state dict under each of {listed(found)}. Give the one that was "
            f"trained: torch.load(path, weights_only=True)[{found[0]!r}]."
        )
    empty = [key for key in STATE_KEYS if isinstance(content.get(key), Mapping)]
    return content[(found or empty)[0]] if found or empty else content


def way_out(content: Mapping[Any, Any], name: str) -> str:
    """What to give instead of a dict without a state dict."""
    found = [str(key) for key, value in content.items() if holds_tensors(value)]
    if found:
        return (
            f"There are state dicts under {listed(found)}: give the one that was trained, "
            f"torch.load(path, weights_only=True)[{found[0]!r}]."
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


def refuse_other_kinds(weights: Mapping[str, Tensor], name: str) -> None:
    """Refuse tensors that are no plain numbers in memory.

    Raises:
        CheckpointError: One is sparse, nested, quantised, without numbers or without a shape.
    """
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


def rate_within(content: Any) -> FileInfo:
    """The learning rate and step that stand beside a state dict, or in its optimizer's."""
    if not isinstance(content, Mapping):
        return FileInfo()
    step = next((whole(content[key]) for key in STEP_KEYS if key in content), None)
    for key in RATE_KEYS:
        rate = number(content.get(key))
        if rate is not None:
            return recorded(rate, step, f"its {key!r}")
    states = [content[key] for key in OPTIMIZER_KEYS if isinstance(content.get(key), Mapping)]
    if not states:
        return FileInfo(step=step)
    return optimizer_rate(states, any(content.get(key) for key in SCHEDULER_KEYS), step)


def optimizer_rate(states: Iterable[Any], has_scheduler: bool, step: int | None) -> FileInfo:
    """The rate in optimizers' state dicts, if no scheduler changed it.

    A scheduler steps before the state is saved, which then holds the rate of the step to come.

    Args:
        states: The state dicts of all optimizers.
        has_scheduler: Whether the checkpoint holds a scheduler's state as well.
        step: The number of steps before the checkpoint, if known.
    """
    groups = [
        group
        for state in states
        if isinstance(state, Mapping) and isinstance(state.get("param_groups"), list | tuple)
        for group in state["param_groups"]
        if isinstance(group, Mapping)
    ]
    # Schedulers leave the first rate in the groups that they change.
    if has_scheduler or any("initial_lr" in group for group in groups):
        reason = "its optimizer state holds the next step's rate, since a scheduler changes it"
        return FileInfo(None, step, reason)
    found = {number(group.get("lr")) for group in groups}
    if not found:
        return FileInfo(None, step, "it has no optimizer state")
    if None in found:
        return FileInfo(None, step, "the rate in its optimizer state is no number")
    if len(found) == 1:
        return recorded(found.pop() or 0.0, step, "the rate in its optimizer state")
    return named_rates(groups, step)


def named_rates(groups: Iterable[Mapping[str, Any]], step: int | None) -> FileInfo:
    """The rate of each parameter, where the optimizer was made from named parameters."""
    rates = {
        bare_name(str(name)): number(group.get("lr")) or 0.0
        for group in groups
        for name in group.get("param_names") or ()
    }
    if not rates:
        return FileInfo(None, step, "its parameter groups have different rates and no names")
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates.values()):
        return FileInfo(None, step, "a rate in its optimizer state is negative or not finite")
    return FileInfo(rates, step, "")


def recorded(rate: float, step: int | None, where: str) -> FileInfo:
    """A rate that was read, or the reason why it cannot be one."""
    if math.isfinite(rate) and rate > 0:
        return FileInfo(rate, step, "")
    return FileInfo(None, step, f"{where} is {rate!r}")


def whole(value: Any) -> int | None:
    """A step number, if this is one."""
    found = number(value)
    is_count = found is not None and math.isfinite(found) and found >= 0 and found == int(found)
    return int(found) if found is not None and is_count else None


def listed(names: Any, most: int = 4) -> str:
    """The first few names, quoted, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
