"""The state dict and the learning rate within the dicts that people save."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

from tracin.checkpoints.names import without_wrappers
from tracin.checkpoints.rate import number
from tracin.errors import CheckpointError

STATE_KEYS = ("state_dict", "model_state_dict", "model")
RATE_KEYS = ("learning_rate", "lr")
STEP_KEYS = ("global_step", "step")
EXTRA_STATE = "_extra_state"  # how torch ends the names of what modules save besides tensors


@dataclass(frozen=True)
class Recorded:
    """What a checkpoint's file says about itself.

    Attributes:
        learning_rate: The rate of the last step before it, if the file says.
        step: The number of optimizer steps before it, if the file says.
        no_rate: Why no learning rate is known.
    """

    learning_rate: float | None = None
    step: int | None = None
    no_rate: str = "it records none"


def weights_within(content: Any, name: str) -> dict[str, Tensor]:
    """The state dict in `content`, or `content` itself, without the prefixes of wrappers.

    Raises:
        CheckpointError: There is none, or it holds something else than tensors.
    """
    if isinstance(content, Module):
        raise CheckpointError(f"{name} is a whole model: give its state dict, model.state_dict().")
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{name} must hold a state dict (parameter name -> tensor), but it holds a "
            f"{type(content).__name__}. Save model.state_dict()."
        )
    inner = next((content[key] for key in STATE_KEYS if is_inner(content, key)), content)
    weights = without_extra_state(inner)
    others = [str(key) for key, value in weights.items() if not isinstance(value, Tensor)]
    if others or not weights:
        held = f"holds {listed(others)}, no tensor" if others else "is empty"
        raise CheckpointError(
            f"{name} must hold a state dict (parameter name -> tensor), by itself or under "
            f"{listed(STATE_KEYS)}, but it {held}. Save model.state_dict()."
        )
    return without_wrappers({str(key): value for key, value in weights.items()})


def without_extra_state(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """A state dict without what `Module.get_extra_state` adds, which is no weight."""
    return {
        key: value
        for key, value in state.items()
        if value is not None and not str(key).endswith(EXTRA_STATE)
    }


def is_inner(content: Mapping[Any, Any], key: str) -> bool:
    """Whether a state dict stands under this key."""
    return isinstance(content.get(key), Mapping)


def rate_within(content: Any) -> Recorded:
    """The learning rate and step that stand beside a state dict."""
    if not isinstance(content, Mapping):
        return Recorded()
    step = next((whole(content[key]) for key in STEP_KEYS if key in content), None)
    for key in RATE_KEYS:
        rate = number(content.get(key))
        if rate is not None:
            return recorded(rate, step, f"its {key!r}")
    return Recorded(step=step)


def recorded(rate: float, step: int | None, where: str) -> Recorded:
    """A rate that was read, or the reason why it cannot be one."""
    if math.isfinite(rate) and rate > 0:
        return Recorded(rate, step, "")
    return Recorded(None, step, f"{where} is {rate!r}")


def whole(value: Any) -> int | None:
    """A step number, if this is one."""
    found = number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def listed(names: Any, most: int = 4) -> str:
    """The first few names, quoted, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
