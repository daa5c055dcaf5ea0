"""Checkpoints of Lightning's Trainer, and when the learning rate in them can be believed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tracin.checkpoints.adam_kind import adam_kind
from tracin.checkpoints.rate import FileInfo, optimizer_rate, whole_number


def is_lightning(content: Any) -> bool:
    """Whether Lightning wrote this dict."""
    return isinstance(content, Mapping) and "pytorch-lightning_version" in content


def lightning_optimizer(content: Any) -> Any:
    """The state dict of the only optimizer in what Lightning wrote; None where there is none."""
    states = content.get("optimizer_states") if is_lightning(content) else None
    return states[0] if isinstance(states, list | tuple) and len(states) == 1 else None


def lightning_rate(content: Mapping[str, Any]) -> FileInfo:
    """The rate of the optimizer, if no scheduler changed it.

    The optimizer's state is saved after its scheduler's step (at an epoch's end also after that of
    a scheduler that steps by epochs), so under a scheduler it holds the rate of the step to come,
    not of the last one: then none is known.
    """
    step = whole_number(content.get("global_step"))
    states = content.get("optimizer_states")
    states = states if isinstance(states, list | tuple) else ()
    found = optimizer_rate(states, bool(content.get("lr_schedulers")), step)
    return replace(found, optimizer_kind=adam_kind(states))
