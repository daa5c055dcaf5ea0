"""Means over seeds, and how far they may be off: 95 % intervals by Student's t.

With the few seeds that trainings allow, a bootstrap over seeds is too narrow (three values have
only ten different resamples); t is exact for normal errors and known from two seeds on.
See Student, "The probable error of a mean", Biometrika 6(1), 1908,
https://doi.org/10.2307/2331554.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.errors import NonFiniteError, QueryError

LEVEL = 0.95


@final
@dataclass(frozen=True, eq=False)
class SeedInterval:
    """A mean over seeds with its 95 % interval, by Student's t.

    Attributes:
        mean: The mean over seeds, of any shape.
        half: Half the interval's width, of the same shape; NaN with one seed, which says nothing of
            the spread.
        seeds: How many values each mean is of.
    """

    mean: Tensor
    half: Tensor
    seeds: int

    @property
    def low(self) -> Tensor:
        """The lower end."""
        return self.mean - self.half

    @property
    def high(self) -> Tensor:
        """The upper end."""
        return self.mean + self.half


def seed_interval(values: Tensor) -> SeedInterval:
    """The mean over the last dimension, and its 95 % interval by Student's t.

    Args:
        values: [..., seeds]; one independent value per seed.

    Raises:
        QueryError: There is no value.
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> import torch
        >>> found = seed_interval(torch.tensor([0.90, 0.92, 0.94]))
        >>> f"{float(found.mean):.2f}, from {float(found.low):.3f} to {float(found.high):.3f}"
        '0.92, from 0.870 to 0.970'
    """
    if values.ndim == 0 or values.shape[-1] == 0:
        raise QueryError(
            "A mean over seeds needs at least one value, [..., seeds]; came "
            f"{list(values.shape)}. Give at least one seed."
        )
    if not bool(values.isfinite().all()):
        raise NonFiniteError(
            "A value to average over seeds is NaN or infinite, so its mean says nothing. Leave "
            "that seed out, or correct what computed it."
        )
    values = values.detach().cpu().double()
    seeds = values.shape[-1]
    mean = values.mean(-1)
    if seeds == 1:
        return SeedInterval(mean, torch.full_like(mean, torch.nan), 1)
    error = values.std(-1) / math.sqrt(seeds)
    return SeedInterval(mean, t_quantile(seeds - 1) * error, seeds)


def seeds_in_words(seeds: Sequence[int]) -> str:
    """How many there are, as text.

    >>> seeds_in_words([0]), seeds_in_words([0, 1])
    ('1 seed', '2 seeds')
    """
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """How many standard errors a two-sided interval reaches, by Student's t.

    The distribution function is a finite sum for whole degrees of freedom: M. Abramowitz and
    I. Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4,
    https://personal.math.ubc.ca/~cbm/aands/page_948.htm.

    Args:
        degrees: Degrees of freedom, at least 1: one fewer than there are values.
        level: How much of the distribution lies inside.

    Example:
        >>> f"{t_quantile(2):.3f}, {t_quantile(30):.3f}"
        '4.303, 2.042'
    """
    low, high = 0.0, 1.0
    while _inside(high, degrees) < level:
        high *= 2
    for _ in range(60):  # halves the interval beyond what a float64 tells apart
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, degrees) < level else (low, middle)
    return (low + high) / 2


def _inside(t: float, degrees: int) -> float:
    """The chance that a t-distributed number lies from -t to t."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term = total = cosine if is_odd else 1.0
    # Each term is the one before times cos^2 and (k - 1) / k, k growing by two.
    for k in range(3 if is_odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if not is_odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
