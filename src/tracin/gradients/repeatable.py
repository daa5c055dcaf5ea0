"""Tells a loss that gives the same example another value in each pass, and says why."""

from typing import final

import torch
from torch import Tensor

from tracin.data import Batch, length, part
from tracin.errors import LossError
from tracin.gradients.traced_model import TracedModel
from tracin.random_state import RandomState

# How far two passes over the same batch may be apart, relative to the largest loss.
_SAME = 1e-6


def refuse_unrepeatable(
    traced: TracedModel, batch: Batch, losses: Tensor, tolerance: float
) -> None:
    """Compute the loss of each example again, and compare.

    Args:
        traced: The model and its loss.
        batch: A few examples.
        losses: What the loss gave for each of them in a batch of its own: [examples].
        tolerance: What rounding explains, relative to the loss.

    Raises:
        LossError: It gives another value now.
    """
    for row in range(length(batch)):
        single = part(batch, slice(row, row + 1))
        before = RandomState.now()
        again = traced.loss_of(single)
        is_random = before != RandomState.now()
        first = float(losses[row])
        gap = abs(again - first)
        if gap > (0.0 if is_random else tolerance * abs(first) + 1e-30):
            raise LossError(_reason(traced, single, first, again, is_random))


def _reason(traced: TracedModel, single: Batch, first: float, again: float, is_random: bool) -> str:
    if is_random:
        return _randomly(first, again)
    values = _values(first, again)
    changed = _changed_buffers(traced, single)
    where = (
        f"the buffer {changed[0]!r} changes in each pass"
        if changed
        else "it keeps state outside the model's buffers, or has a random generator of its own"
    )
    return (
        f"The model or its loss changes state in each pass: {values}; {where}. Freeze the state "
        "while scores are computed (observers, running means, counters, caches)."
    )


def _randomly(first: float, again: float) -> str:
    return (
        f"The loss draws random numbers: {_values(first, again)}, so scores would be random, too. "
        "Fix them for each example: store the noise (or a seed) with the example in the data, or "
        "average over a few fixed draws."
    )


def _values(first: float, again: float) -> str:
    return f"the same example has loss {first:.6g} in one pass and {again:.6g} in the next"


def _changed_buffers(traced: TracedModel, single: Batch) -> list[str]:
    before = {name: buffer.clone() for name, buffer in traced.model.named_buffers()}
    traced.loss_of(single)
    return [
        name
        for name, buffer in traced.model.named_buffers()
        if name in before
        and (buffer.shape != before[name].shape or not torch.equal(buffer, before[name]))
    ]


@final
class Draws:
    """Refuses batches whose losses depend on numbers that were drawn in their pass.

    A model may draw numbers and not use them, as layers dropped in training alone do. If it does in
    its first batch, it does in all, and audited batches are compared; others, whenever they draw.
    """

    def __init__(self, traced: TracedModel) -> None:
        self._traced = traced
        self._is_first = True
        self._draws_always = False

    def refuse_since(self, before: RandomState, batch: Batch, *, is_audited: bool) -> None:
        """Compute the losses of a batch that drew random numbers twice, and compare.

        Args:
            before: The state of the generators before its pass.
            batch: Examples first.
            is_audited: Whether the batch is audited.

        Raises:
            LossError: They differ.
        """
        is_first, self._is_first = self._is_first, False
        if self._traced.is_sharded:
            return  # ranks pass together, and one alone may have drawn
        if before == RandomState.now() or (self._draws_always and not is_audited):
            return
        one, other = (self._traced.losses_of(batch) for _ in range(2))
        gaps = (one - other).abs().nan_to_num()
        # Kernels that add up in any order round differently each time.
        if bool(gaps.max() > _SAME * one.abs().nan_to_num().max()):
            at = int(gaps.argmax())
            raise LossError(_randomly(float(one[at]), float(other[at])))
        self._draws_always |= is_first
