"""A checkpoint's learning rate: which values are valid, and what a saved file records."""

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from tracin.checkpoints.adam_kind import adam_kind
from tracin.checkpoints.state_dict import bare_name
from tracin.errors import LearningRateError

Rate: TypeAlias = float | Mapping[str, float]
RATE_KEYS = ("learning_rate", "lr")
STEP_KEYS = ("global_step", "step")
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim", "opt")
SCHEDULER_KEYS = ("scheduler", "lr_scheduler", "scheduler_state_dict", "sched")


def valid_rate(rate: Any, name: str) -> float | dict[str, float]:
    """Check the learning rate given for the checkpoint called `name`.

    A mapping gives one rate for each parameter name. Some of its rates may be zero, since an
    optimizer can hold a group still, but not all.
    """
    if not isinstance(rate, Mapping):
        value = number(rate)
        if value is None or not math.isfinite(value) or value <= 0:
            raise LearningRateError(refusal(name, rate))
        return value
    rates: dict[str, float] = {}
    for parameter, one in rate.items():
        value = number(one)
        if value is None or not math.isfinite(value) or value < 0:
            raise LearningRateError(refusal(name, one, f" for {parameter!r}"))
        rates[str(parameter)] = value
    if not any(rates.values()):
        raise LearningRateError(refusal(name, dict(rate)))
    return rates


def refusal(name: str, rate: Any, of: str = "") -> str:
    """The message for a learning rate that cannot be one."""
    return (
        f"A checkpoint's learning rate must be a positive, finite number; {name} gives "
        f"{rate!r}{of}. Leave that checkpoint out, or weigh all of them equally with "
        'learning_rates="equal".'
    )


def number(value: Any) -> float | None:
    """`value` as a float if it is a number, NumPy's and torch's included; else None."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf  # whatever its sign: no learning rate and no step
    return None


@dataclass(frozen=True)
class FileInfo:
    """What a checkpoint's file says about itself.

    Attributes:
        learning_rate: The rate of the last step before it, or of each parameter then, if the
            file says.
        step: The number of optimizer steps before it, if the file says.
        no_rate: Why no learning rate is known.
        optimizer_kind: "Adam" or "AdamW" if the file has the state of one of them.
    """

    learning_rate: Rate | None = None
    step: int | None = None
    no_rate: str = "it records none"
    optimizer_kind: str = ""


def rate_within(content: Any) -> FileInfo:
    """The learning rate and step saved with a state dict, or in its optimizer's state."""
    if not isinstance(content, Mapping):
        return FileInfo()
    step = next((whole_number(content[key]) for key in STEP_KEYS if key in content), None)
    states = [content[key] for key in OPTIMIZER_KEYS if isinstance(content.get(key), Mapping)]
    kind = adam_kind(states)
    for key in RATE_KEYS:
        rate = number(content.get(key))
        if rate is not None:
            return replace(recorded(rate, step, f"its {key!r}"), optimizer_kind=kind)
    if not states:
        return FileInfo(step=step)
    found = optimizer_rate(states, any(content.get(key) for key in SCHEDULER_KEYS), step)
    return replace(found, optimizer_kind=kind)


def optimizer_rate(states: Iterable[Any], has_scheduler: bool, step: int | None) -> FileInfo:
    """The rate in optimizers' state dicts, if no scheduler changed it.

    A scheduler steps before the state is saved, which then holds the rate of the step to come.
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
        return FileInfo(None, step, "the rate in its optimizer state is not a number")
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


def whole_number(value: Any) -> int | None:
    """A step number, if this is one."""
    found = number(value)
    is_count = found is not None and math.isfinite(found) and found >= 0 and found == int(found)
    return int(found) if found is not None and is_count else None
