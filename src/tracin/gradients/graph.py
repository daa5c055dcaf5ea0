"""The autograd graph of the losses: which leaves it leads to."""

from collections.abc import Container, Iterable, Iterator, Mapping
from inspect import unwrap
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter

from tracin.errors import LossError


def nodes_of(losses: Tensor) -> Iterator[Any]:
    """Every node of the graph behind `losses`, once."""
    seen: set[Any] = set()
    nodes = [losses.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        nodes.extend(following for following, _ in node.next_functions)


def leaves_of(losses: Tensor) -> list[Tensor]:
    """The leaves that require grad and that the graph leads to."""
    if losses.grad_fn is None:
        return [losses] if losses.requires_grad else []
    found = (getattr(node, "variable", None) for node in nodes_of(losses))
    return [leaf for leaf in found if leaf is not None]


def reached(leaves: Iterable[Tensor], parameters: Mapping[str, Tensor]) -> set[str]:
    """The parameters among the leaves: used where no rule saw it."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {names[id(leaf)] for leaf in leaves if id(leaf) in names}


def refuse_foreign(
    leaves: Iterable[Tensor],
    known: Iterable[Tensor],
    compute: Any,
    lasting: Container[int] = frozenset(),
) -> None:
    """Refuse a loss that depends on trained tensors which are no parameters of the model.

    Leaves that a loss makes in each pass, to differentiate by its inputs, are no such tensors.

    Args:
        leaves: Those that the graph of the losses leads to.
        known: The model's parameters, and what a pass has added itself.
        compute: The loss; where it is a Module, its parameters have names.
        lasting: The ids of leaves that an earlier pass led to as well.

    Raises:
        LossError: There is such a tensor.
    """
    ours = {id(leaf) for leaf in known}
    foreign = [
        leaf
        for leaf in leaves
        if id(leaf) not in ours and (isinstance(leaf, Parameter) or id(leaf) in lasting)
    ]
    if not foreign:
        return
    described = ", ".join(_described(leaf, compute) for leaf in foreign[:3])
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    raise LossError(
        f"The loss depends on trained tensors outside the model: {described}{more}. They would be "
        "left out of every score, and no checkpoint of the model holds their values. Make one "
        "Module that holds the model and these parameters and give that as the model, with "
        "checkpoints of it; if they were not trained, call requires_grad_(False) on them."
    )


def _described(leaf: Tensor, compute: Any) -> str:
    loss = unwrap(compute)
    owner = getattr(loss, "__self__", loss)
    if isinstance(owner, Module):
        for name, parameter in owner.named_parameters():
            if parameter is leaf:
                return f"'{name}' of the loss, {list(leaf.shape)}"
    return f"a tensor of shape {list(leaf.shape)}"
