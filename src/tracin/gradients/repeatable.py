"""Tells a loss that gives the same example another value in each pass, and says why."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.errors import LossError
from tracin.gradients.compute import Compute, checked_losses


def refuse_unrepeatable(
    model: Module, compute: Compute, batch: Batch, losses: Tensor, tolerance: float
) -> None:
    """Compute the loss of each example again, and compare.

    Args:
        model: In eval mode.
        compute: The per-example loss.
        batch: A few examples.
        losses: What the loss gave for each of them in a batch of its own: [examples].
        tolerance: What rounding explains, relative to the loss.

    Raises:
        LossError: It gives another value now.
    """
    for row in range(length(batch)):
        single = part(batch, slice(row, row + 1))
        before = _random_state()
        again = _loss(model, compute, single)
        is_random = _differs(before, _random_state())
        first = float(losses[row])
        gap = abs(again - first)
        if gap > (0.0 if is_random else tolerance * abs(first) + 1e-30):
            raise LossError(_reason(model, compute, single, first, again, is_random))


def _loss(model: Module, compute: Compute, single: Batch) -> float:
    with torch.enable_grad():  # a loss may take gradients of its own
        return float(checked_losses(compute(model, single), 1).detach())


def _reason(
    model: Module, compute: Compute, single: Batch, first: float, again: float, is_random: bool
) -> str:
    values = f"the same example alone has loss {first:.6g} in one pass and {again:.6g} in the next"
    if is_random:
        return (
            f"The loss draws random numbers: {values}, so scores would be random, too. Fix them "
            "for each example: store the noise (or a seed) with the example in the data, or "
            "average over a few fixed draws."
        )
    changed = _changed_buffers(model, compute, single)
    where = (
        f"the buffer {changed[0]!r} changes in each pass"
        if changed
        else "it keeps state outside the model's buffers, or has a random generator of its own"
    )
    return (
        f"The model or its loss changes state in each pass: {values}; {where}. Freeze the state "
        "while scores are computed (observers, running means, counters, caches)."
    )


def _changed_buffers(model: Module, compute: Compute, single: Batch) -> list[str]:
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _loss(model, compute, single)
    return [
        name
        for name, buffer in model.named_buffers()
        if name in before
        and (buffer.shape != before[name].shape or not torch.equal(buffer, before[name]))
    ]


def _random_state() -> list[Any]:
    numpy: Any = np.random.get_state()
    state: list[Any] = [torch.get_rng_state(), numpy[1].tobytes(), numpy[2], random.getstate()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state += torch.cuda.get_rng_state_all()
    return state


def _differs(before: list[Any], after: list[Any]) -> bool:
    return any(
        not torch.equal(one, other) if isinstance(one, Tensor) else one != other
        for one, other in zip(before, after, strict=True)
    )
