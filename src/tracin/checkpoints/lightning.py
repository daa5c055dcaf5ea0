"""Checkpoints of Lightning's Trainer, and when the learning rate in them can be believed."""

from collections.abc import Mapping
from typing import Any

from tracin.checkpoints.rate import number
from tracin.checkpoints.state_dicts import Recorded, recorded, whole


def is_lightning(content: Any) -> bool:
    """Whether Lightning wrote this dict."""
    return isinstance(content, Mapping) and "pytorch-lightning_version" in content


def lightning_rate(content: Mapping[str, Any]) -> Recorded:
    """The rate of the optimizer, if no scheduler changed it.

    The optimizer's state is saved after its scheduler's step (at an epoch's end also after that of
    a scheduler that steps by epochs), so under a scheduler it holds the rate of the step to come,
    not of the last one: then none is known.
    """
    step = whole(content.get("global_step"))
    if content.get("lr_schedulers"):
        reason = "its optimizer state holds the next step's rate, since a scheduler changes it"
        return Recorded(None, step, reason)
    found = {
        number(group.get("lr"))
        for state in content.get("optimizer_states") or ()
        for group in state.get("param_groups", ())
    }
    if not found:
        return Recorded(None, step, "it has no optimizer state")
    if len(found) > 1:
        return Recorded(None, step, "its parameter groups have different rates and no names")
    rate = found.pop()
    if rate is None:
        return Recorded(None, step, "the rate in its optimizer state is no number")
    return recorded(rate, step, "the rate in its optimizer state")
