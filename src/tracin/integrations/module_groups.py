"""Which parameters the numbers in the optimizer state of a `.ckpt` stand for."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.state_dict import bare_name
from tracin.guards import untouched

NAMES = "param_names"  # in a group, where the optimizer was made of named parameters
MOMENT = "exp_avg_sq"

Groups = tuple[tuple[str, ...], ...]


def module_groups(module: Module, state: Mapping[str, Any]) -> Groups | None:
    """The names of the parameters in each group of an optimizer's state dict, in its order.

    They are in the state itself where the optimizer was made of named parameters. Else the module
    makes its optimizer again, by `configure_optimizers`, and tells whose they are.

    Args:
        module: The LightningModule that was trained.
        state: The state dict of its optimizer; shapes are enough.

    Returns:
        None where neither tells, or the parameters have other shapes than their moments.
    """
    groups = _written(state["param_groups"]) or _made(module)
    numbers = [group["params"] for group in state["param_groups"]]
    if groups is None or [len(group) for group in groups] != [len(group) for group in numbers]:
        return None
    shapes = {bare_name(name): one.shape for name, one in module.named_parameters()}
    moments = state["state"]
    fits = all(
        at not in moments or moments[at][MOMENT].shape == shapes.get(name)
        for names, places in zip(groups, numbers, strict=True)
        for name, at in zip(names, places, strict=True)
    )
    return groups if fits else None


def _written(groups: Sequence[Mapping[str, Any]]) -> Groups | None:
    """The names in the state: under a key of their own, or, as FSDP has them, for numbers."""
    named = [group.get(NAMES, group["params"]) for group in groups]
    if not all(isinstance(name, str) for names in named for name in names):
        return None
    return tuple(tuple(map(bare_name, names)) for names in named)


def _made(module: Module) -> Groups | None:
    """The names in the groups of an optimizer that the module makes anew."""
    make: Any = getattr(module, "configure_optimizers", None)
    if not callable(make):
        return None
    try:
        with untouched(module):
            optimizer = _only(make())
    except Exception:  # the user's own code, which may need its trainer
        return None
    names = {id(one): bare_name(name) for name, one in module.named_parameters()}
    if optimizer is None:
        return None
    held = [group["params"] for group in optimizer.param_groups]
    if any(id(one) not in names for group in held for one in group):
        return None
    return tuple(tuple(names[id(one)] for one in group) for group in held)


def _only(configured: Any) -> Optimizer | None:
    """The one optimizer in what `configure_optimizers` returned, in any of its forms."""
    if isinstance(configured, Optimizer):
        return configured
    if isinstance(configured, Mapping):
        return _only(configured.get("optimizer"))
    if not isinstance(configured, list | tuple):
        return None
    first = list(configured)[:1]
    is_with_schedulers = len(configured) == 2 and isinstance(configured[0], list | tuple)
    return _only(first[0]) if first and (len(configured) == 1 or is_with_schedulers) else None
