"""The loss as the engine takes it, and the check that it gives one value per example."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import Module

from tracin.data import Batch
from tracin.errors import LossError
from tracin.losses import losses_in

Compute = Callable[[Module, Batch], Any]  # the loss, or a loss with its logits: an Outcome


def checked_losses(outcome: Any, examples: int) -> Tensor:
    """The losses of an outcome: [examples].

    Raises:
        LossError: They are not one floating point value per example.
    """
    losses = losses_in(outcome)
    if not isinstance(losses, Tensor):
        raise LossError(
            f"The loss returned {type(losses).__name__}, but a tensor of one value per example is "
            "needed: [examples]."
        )
    if losses.shape != (examples,):
        raise LossError(
            f"The loss returned shape {tuple(losses.shape)} for {examples} examples, but one value "
            "per example is needed: [examples]. If it averages over the batch, pass "
            "reduction='none' to it; if it returns one value per token, average them over each "
            "example."
        )
    if not losses.dtype.is_floating_point:
        raise LossError(f"The loss returned {losses.dtype}, but floating point values are needed.")
    return losses
