"""Which parameters the numbers in a Trainer's `optimizer.pt` stand for."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import LayerNorm, Module
from transformers.trainer_pt_utils import get_parameter_names

from tracin.checkpoints.state_dict import bare_name

NORMS = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
MOMENT = "exp_avg_sq"

Groups = tuple[tuple[str, ...], ...]


def trainer_groups(model: Module, content: Mapping[str, Any]) -> Groups | None:
    """The names of the parameters in each group of an optimizer's state dict, in its order.

    The Trainer makes two groups of the parameters that require a gradient, with weight decay and
    without, each in the model's order; which is which differs between its releases. Each rule is
    tried against the shapes of the moments.

    Args:
        model: The model that was trained, with the same parameters frozen.
        content: The state dict of its optimizer; shapes are enough.

    Returns:
        None where no rule fits.
    """
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    sizes = [group["params"] for group in content["param_groups"]]
    for rule in (_of_today, _before, _long_before):
        decayed = rule(model)
        halves = [[n for n in trained if n in decayed], [n for n in trained if n not in decayed]]
        groups = halves if len(sizes) == 2 else [list(trained)]
        if _fit(groups, sizes, trained, content["state"]):
            return tuple(tuple(map(bare_name, group)) for group in groups)
    return None


def _fit(
    groups: Sequence[Sequence[str]],
    numbers: Sequence[Sequence[int]],
    trained: Mapping[str, Tensor],
    moments: Mapping[int, Mapping[str, Tensor]],
) -> bool:
    """Whether each parameter has the shape of its moment, as far as it has one."""
    if [len(group) for group in groups] != [len(group) for group in numbers]:
        return False
    return all(
        at not in moments or moments[at][MOMENT].shape == trained[name].shape
        for names, places in zip(groups, numbers, strict=True)
        for name, at in zip(names, places, strict=True)
    )


def _of_today(model: Module) -> set[str]:
    """By the names of norms and biases, and by the class LayerNorm."""
    return set(get_parameter_names(model, [LayerNorm], list(NORMS)))


def _before(model: Module) -> set[str]:
    """By the classes of norms, of which releases knew more and more, and by biases."""
    kinds = [LayerNorm, *{type(one) for one in model.modules() if "Norm" in type(one).__name__}]
    return {name for name in get_parameter_names(model, kinds) if "bias" not in name}


def _long_before(model: Module) -> set[str]:
    """Norms of other classes than torch's had weight decay."""
    return {name for name in get_parameter_names(model, [LayerNorm]) if "bias" not in name}
