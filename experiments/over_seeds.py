"""Figures of several runs as one: their mean, and how far off it may be."""

from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor


def half_width(values: Tensor) -> Tensor:
    """Half the 95 % interval of the mean by Student's t, over the first dimension.

    Args:
        values: [runs, ...]; for a single run the interval is not known, and NaN.
    """
    runs = len(values)
    if runs < 2:
        return torch.full(values.shape[1:], torch.nan, dtype=torch.float64)
    return stats.t.ppf(0.975, runs - 1) * values.double().std(0) / runs**0.5


def written(values: Sequence[float], digits: int = 3) -> str:
    """The mean of some runs with its 95 % interval: "0.712 ± 0.010"."""
    each = torch.tensor(values, dtype=torch.float64)
    half = half_width(each)
    spread = "" if half.isnan() else f" ± {half:.{digits}f}"
    return f"{each.mean():.{digits}f}{spread}"
