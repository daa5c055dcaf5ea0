"""Whether an optimizer's state is that of torch's Adam or AdamW."""

from collections.abc import Iterable, Mapping
from typing import Any

ADAM_KINDS = ("Adam", "AdamW")
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
_OPTIONS = {"betas", "eps", "amsgrad"}
_OF_OTHERS = "momentum_decay"  # NAdam's


def adam_kind(states: Iterable[Any]) -> str:
    """Say "Adam" or "AdamW" where these optimizers' state dicts look like theirs, else "".

    A state dict does not name its optimizer. Both keep the same moments and differ in how weight
    decay goes into a step; releases of torch before 2.7 do not say which it was: "AdamW".

    Example:
        >>> import torch
        >>> adam_kind([torch.optim.Adam([torch.ones(1)]).state_dict()])
        'Adam'
        >>> adam_kind([torch.optim.SGD([torch.ones(1)]).state_dict()])
        ''
    """
    kinds = {_kind(state) for state in states}
    return kinds.pop() if len(kinds) == 1 else ""


def _kind(state: Any) -> str:
    if not isinstance(state, Mapping):
        return ""
    groups, moments = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list | tuple) or not isinstance(moments, Mapping) or not groups:
        return ""
    is_alike = all(
        isinstance(group, Mapping) and group.keys() >= _OPTIONS and _OF_OTHERS not in group
        for group in groups
    ) and all(isinstance(one, Mapping) and one.keys() >= _MOMENTS for one in moments.values())
    if not is_alike:
        return ""
    is_decoupled = all(group.get("decoupled_weight_decay", True) for group in groups)
    return "AdamW" if is_decoupled else "Adam"
