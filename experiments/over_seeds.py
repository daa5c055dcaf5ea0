"""Figures of several runs as one: their mean, and how far off it may be."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tracin.analysis.intervals import seed_interval


def half_width(values: Tensor) -> Tensor:
    """Half the 95 % interval of the mean by Student's t, over the first dimension.

    Args:
        values: [runs, ...]; for a single run the interval is not known, and NaN.
    """
    return seed_interval(values.movedim(0, -1)).half


def written(values: Sequence[float], digits: int = 3) -> str:
    """The mean of some runs with its 95 % interval: "0.712 ± 0.010"."""
    each = torch.tensor(values, dtype=torch.float64)
    half = half_width(each)
    spread = "" if half.isnan() else f" ± {half:.{digits}f}"
    return f"{each.mean():.{digits}f}{spread}"
