"""What autograd says: the gradient of a weighted sum of a batch's losses, on leaves of our own.

The weights that the model computes with are exchanged for fresh leaves, so nothing that hangs on
the user's parameters takes part: no hooks, no `.grad`, no optimizer that steps in the backward
pass, no reducer of DistributedDataParallel.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length
from tracin.data.batches import mapped_within
from tracin.errors import TracInError
from tracin.gradients.checkpointing import reentrant_stretches
from tracin.gradients.compute import Compute, checked_losses
from tracin.gradients.exchange import exchanged
from tracin.gradients.graph import leaves_of, reached, refuse_foreign
from tracin.out_of_memory import is_out_of_memory, raise_if_out_of_memory
from tracin.sharding import is_divided, local_part


def weighted_gradients(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """The gradient of the sum of factor x loss over a batch, and the losses.

    Of a sharded model, the mean over the ranks, and of it this rank's part.

    Args:
        model: In eval mode.
        compute: The per-example loss.
        batch: Examples first.
        parameters: Those to differentiate by, by name.
        factors: One factor per example: [examples]; None for ones.

    Returns:
        The gradients by name, zeros where the loss does not use a parameter, and the losses:
        [examples].

    Raises:
        LossError: The loss is no differentiable value per example, or depends on trained tensors
            outside the model.
    """
    gradients, losses = summed_gradients(model, compute, [(batch, factors)], parameters)
    return gradients, losses


def summed_gradients(
    model: Module,
    compute: Compute,
    parts: Sequence[tuple[Batch, Tensor | None]],
    parameters: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """The gradient of the sum of factor x loss over several batches, one backward pass for each.

    Each pass adds to the numbers of the ones before it, so that a model's gradient is held once.

    Args:
        model: In eval mode.
        compute: The per-example loss.
        parts: Batches with their factors, as in `weighted_gradients`.
        parameters: Those to differentiate by, by name.

    Returns:
        The gradients by name, and the losses of the batches, one after the other: [examples].

    Raises:
        LossError: As from `weighted_gradients`.
    """
    if is_divided(parameters):
        return _on_the_parameters(model, compute, parts, parameters)
    leaves = _leaves(parameters)
    wanted = {id(one) for one in parameters.values()}
    rest = {
        name: one
        for name, one in model.named_parameters()
        if one.requires_grad and id(one) not in wanted
    }
    fixed = {name: one.detach() for name, one in rest.items()}
    original = {**rest, **parameters}
    try:
        # The backward pass belongs inside: checkpointed parts of a model run again in it.
        with exchanged(model, original, {**fixed, **leaves}), reentrant_stretches() as met:
            losses = _on_leaves(model, compute, parts, parameters, leaves)
        if met and rest:  # stretches of which only the rest reaches the inputs had no gradients
            leaves = _leaves(original)
            with exchanged(model, original, leaves):
                losses = _on_leaves(model, compute, parts, original, leaves)
    except TracInError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        losses = None  # the parameters themselves tell whether it is the model's own error
    if losses is None:
        del leaves  # with what was added to them
        return _by_grad(model, compute, parts, parameters)
    return {name: _gradient(leaves[name]) for name in parameters}, losses


def _leaves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.detach().requires_grad_() for name, one in tensors.items()}


def weighted_gradients_in_double(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor] | None:
    """As `weighted_gradients`, with model and batch in float64; None where they do not run so."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    # What was trained requires grad: reentrant stretches have no gradients otherwise.
    others = {name: _doubled(one).requires_grad_(one.requires_grad) for name, one in own.items()}
    names = {id(tensor): name for name, tensor in own.items()}
    try:
        wide = {name: others[names[id(one)]] for name, one in parameters.items()}
        with exchanged(model, own, others):
            doubled = mapped_within(_doubled, batch)
            return weighted_gradients(model, compute, doubled, wide, factors)
    except Exception as error:  # a kernel that lacks float64, a loss that holds weights of its own
        raise_if_out_of_memory(error)
        return None


def _doubled(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.is_complex():
        return leaf.detach().to(torch.complex128)
    return leaf.detach().double() if leaf.is_floating_point() else leaf.detach()


def _on_leaves(
    model: Module,
    compute: Compute,
    parts: Sequence[tuple[Batch, Tensor | None]],
    parameters: Mapping[str, Tensor],
    leaves: Mapping[str, Tensor],
) -> Tensor | None:
    """The losses, after gradients were added to the leaves; None where the originals were used."""
    of_parts = []
    for batch, factors in parts:
        with torch.enable_grad():
            losses = checked_losses(compute(model, batch), length(batch))
        used = leaves_of(losses)
        if reached(used, parameters):
            return None
        if losses.requires_grad:
            refuse_foreign(used, leaves.values(), compute)
            # `.backward()`, since reentrant activation checkpointing refuses `torch.autograd.grad`.
            _weighted(losses, factors).backward()
        of_parts.append(losses.detach())
    return torch.cat(of_parts)


def _by_grad(
    model: Module,
    compute: Compute,
    parts: Sequence[tuple[Batch, Tensor | None]],
    parameters: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """For a loss that reaches the parameters around the model, as closures over weights do."""
    found = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    of_parts = []
    for batch, factors in parts:
        with torch.enable_grad():
            losses = checked_losses(compute(model, batch), length(batch))
        of_parts.append(losses.detach())
        if losses.requires_grad:
            refuse_foreign(leaves_of(losses), model.parameters(), compute)
            wanted = [parameters[name] for name in parameters]
            gradients = torch.autograd.grad(_weighted(losses, factors), wanted, allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    found[name] += gradient
    return found, torch.cat(of_parts)


def _on_the_parameters(
    model: Module,
    compute: Compute,
    parts: Sequence[tuple[Batch, Tensor | None]],
    parameters: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """For sharded parameters, whose gradients FSDP2 gathers into `.grad` as it goes."""
    kept = {name: parameter.grad for name, parameter in parameters.items()}
    of_parts = []
    try:
        for parameter in parameters.values():
            parameter.grad = None
        for batch, factors in parts:
            with torch.enable_grad():
                losses = checked_losses(compute(model, batch), length(batch))
            of_parts.append(losses.detach())
            if losses.requires_grad:
                _weighted(losses, factors).backward()
        return {name: _gradient(one) for name, one in parameters.items()}, torch.cat(of_parts)
    finally:
        for name, parameter in parameters.items():
            parameter.grad = kept[name]


@torch.enable_grad()  # also within a user's no_grad
def _weighted(losses: Tensor, factors: Tensor | None) -> Tensor:
    return (losses if factors is None else losses * factors.to(losses)).sum()


def _gradient(leaf: Tensor) -> Tensor:
    if leaf.grad is None:
        return torch.zeros_like(local_part(leaf))
    return _plain(local_part(leaf.grad))


def _plain(gradient: Any) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient
