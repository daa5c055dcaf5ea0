"""What the loss of one example shows: that it can be differentiated, and what rounding explains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.data import Batch, part
from tracin.errors import LossError
from tracin.gradients.checkpointing import reentrant_stretches
from tracin.gradients.compute import checked_losses
from tracin.gradients.graph import leaves_of, refuse_foreign
from tracin.gradients.held import outcome_with_bytes
from tracin.gradients.refusals import Guard
from tracin.gradients.self_check import tolerance_of
from tracin.gradients.traced_model import TracedModel
from tracin.random_state import RandomState


@final
@dataclass(frozen=True)
class Inspection:
    """What one forward pass over one example shows.

    Attributes:
        tolerance: How far rounding can put two computations of a loss or gradient apart, relative
            to its size.
        held: Bytes of activations that an example keeps for the backward pass.
        draws: Whether random numbers were drawn.
    """

    tolerance: float
    held: int
    draws: bool


def inspected(traced: TracedModel, batch: Batch) -> Inspection:
    """Compute the loss of the first example of `batch`, and look at its graph.

    Raises:
        LossError: The loss is no differentiable value per example, or depends on trained tensors
            outside the model.
        CoupledExamplesError: BatchNorm runs in train mode.
    """
    single = part(batch, [0])
    before = RandomState.now()
    loss, held = _loss_of(traced, single)
    draws = before != RandomState.now()
    if not loss.requires_grad:
        raise LossError(
            "The losses do not depend on any traced parameter through autograd. Was the "
            "loss computed under torch.no_grad(), or from detached outputs?"
        )
    if not traced.is_sharded:
        _refuse_foreign(traced, single, leaves_of(loss))
    return Inspection(tolerance_of(traced.parameters, loss), held, draws)


def _loss_of(traced: TracedModel, single: Batch) -> tuple[Tensor, int]:
    """The loss of one example, and the bytes that its graph keeps."""
    with torch.enable_grad(), Guard(), reentrant_stretches() as met:
        outcome, held = outcome_with_bytes(traced.model, traced.compute, single)
    loss = checked_losses(outcome, 1)
    if not met or traced.is_reentrant:
        return loss, held
    traced.note_reentrant()
    return _loss_of(traced, single)  # its stretches may now have gradients


def _refuse_foreign(traced: TracedModel, single: Batch, leaves: Sequence[Tensor]) -> None:
    """Trained tensors outside the model are those that are there in two passes."""
    ours = {id(one) for one in traced.model.parameters()}
    if all(id(leaf) in ours for leaf in leaves):
        return
    with torch.enable_grad():
        again = leaves_of(checked_losses(traced.compute(traced.model, single), 1))
    lasting = {id(leaf) for leaf in leaves}
    refuse_foreign(again, traced.model.parameters(), traced.compute, lasting)
