"""What became of a gradient between backward pass and optimizer: clipped, unscaled, changed."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms import full
from tracin.tracing.micro_batches import MicroBatch, summed_shares
from tracin.tracing.raw_gradients import RawGradient

# How far two float32 sums of the same gradient may be apart, relative to its length.
TOLERANCE = 1e-3


@final
@dataclass(frozen=True, eq=False)
class GradientUse:
    """used = factor * (the sum of the shares) + rest.

    Attributes:
        factor: One number (clipping by norm, unscaling), or one per entry (clipping by value).
        rest: What came from no example of the traced batches; None for nothing.
    """

    factor: float | Tensor
    rest: Tensor | None = None


def guessed_use(raw: RawGradient, used: Tensor, version: int) -> GradientUse:
    """One factor, from lengths alone; the caller tests whether that holds."""
    if version == raw.version:
        return GradientUse(1.0)
    length = float(raw.length)
    now = float(torch.linalg.vector_norm(full(used)))
    return GradientUse(now / length if length else 1.0)


def measured_use(batches: list[MicroBatch], name: str, used: Tensor) -> GradientUse:
    """What became of a gradient, from the shares written out and added up."""
    raw = summed_shares(batches, name)
    if raw is None:
        return GradientUse(1.0, used if bool(used.any()) else None)
    raw = raw.view_as(used).to(used.dtype)
    length, now = (float(torch.linalg.vector_norm(each)) for each in (raw, used))
    if length == 0:
        return GradientUse(1.0, used if now else None)
    tolerance = 1e-8 if used.dtype == torch.float64 else TOLERANCE
    factor = float(torch.sum(raw * used)) / length**2
    if float(torch.linalg.vector_norm(used - factor * raw)) <= tolerance * now:
        return GradientUse(1.0 if abs(factor - 1) <= tolerance else factor)
    largest = float(used.abs().max())
    capped = raw.clamp(-largest, largest)
    if float(torch.linalg.vector_norm(used - capped)) <= tolerance * now:
        return GradientUse(torch.where(raw == 0, 1.0, capped / raw))
    return GradientUse(1.0, used - raw)
