"""The slow twin: one ordinary backward pass an example, exact for whatever can be trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.gradients.fast import Compute, checked_losses
from tracin.gradients.forms import Dense
from tracin.gradients.functional import refuse_sharded
from tracin.gradients.ledger import Visit
from tracin.sharding import local


def loop_pass(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    visit: Visit,
) -> None:
    """Hand the per-example gradients of `parameters` on a batch to `visit`, written out.

    Raises:
        UnsupportedModelError: The parameters are sharded: a backward pass averages over ranks.
    """
    refuse_sharded(parameters)
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for example in range(length(batch)):
        single = part(batch, slice(example, example + 1))
        gradients, _ = summed_gradients(model, compute, single, parameters)
        for name, gradient in gradients.items():
            rows[name].append(gradient)
    for name, gradients in rows.items():
        visit(name, Dense(torch.stack(gradients)))


def summed_gradients(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """What autograd says: the gradient of the sum of factor x loss over a batch, and the losses.

    Of a sharded model, the mean over the ranks, and of it this rank's part.

    `.backward()` and not `torch.autograd.grad`, which reentrant activation checkpointing refuses.
    """
    with empty_grads(parameters), torch.enable_grad():
        losses = checked_losses(compute(model, batch), length(batch))
        if losses.requires_grad:
            weighted = losses if factors is None else losses * factors.to(losses)
            weighted.sum().backward()
        found = {name: _grad(parameter) for name, parameter in parameters.items()}
        return found, losses.detach()


@contextmanager
def empty_grads(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Set the user's `.grad` aside, and put it back on leaving."""
    kept = {name: parameter.grad for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.grad = None
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.grad = kept[name]


def _grad(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(local(parameter))
    gradient = local(parameter.grad)
    return gradient.to_dense() if gradient.is_sparse else gradient
