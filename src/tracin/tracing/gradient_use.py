"""What became of a gradient between backward pass and optimizer: clipped, unscaled, changed."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.rules.rule import full
from tracin.tracing.shares import Share, summed

# How far two float32 sums of the same gradient may be apart, relative to its length.
TOLERANCE = 1e-3


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """A parameter's gradient as the backward pass left it.

    Attributes:
        version: The count of in-place changes at that time.
        length: Its length, a tensor that is not waited for.
    """

    version: int
    length: Tensor

    @classmethod
    def of(cls, gradient: Tensor) -> "Seen":
        """Look at a gradient."""
        return cls(gradient._version, torch.linalg.vector_norm(full(written(gradient))))


@final
@dataclass(frozen=True, eq=False)
class GradientUse:
    """used = factor * (the sum of the shares) + rest.

    Attributes:
        factor: One number (clipping by norm, unscaling), or one an entry (clipping by value).
        rest: What no example of the traced batches brought; None for nothing.
    """

    factor: float | Tensor
    rest: Tensor | None = None


def assumed(seen: Seen, used: Tensor, version: int) -> GradientUse:
    """One factor, from lengths alone; whether that holds is for the caller to test.

    Args:
        seen: The gradient as the backward pass left it.
        used: What the optimizer was given.
        version: Its count of in-place changes when it was.
    """
    if version == seen.version:
        return GradientUse(1.0)
    length = float(seen.length)
    now = float(torch.linalg.vector_norm(full(used)))
    return GradientUse(now / length if length else 1.0)


def examined(shares: list[Share], name: str, used: Tensor) -> GradientUse:
    """What became of it, from the shares written out and added up."""
    raw = summed(shares, name)
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


def written(gradient: Tensor) -> Tensor:
    """A gradient with its zeros: embeddings may give sparse ones."""
    return gradient.to_dense() if gradient.is_sparse else gradient
