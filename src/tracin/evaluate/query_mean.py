"""A mean over queries, and how far it may be off: the bootstrap over queries.

B. Efron, "Bootstrap methods: another look at the jackknife", 1979,
https://doi.org/10.1214/aos/1176344552.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.printed import Printed

RESAMPLES = 1000


@final
@dataclass(frozen=True, eq=False, repr=False)
class QueryMean(Printed):
    """A mean over queries with its 95 % interval. Printing it gives both.

    Attributes:
        value: The mean over queries.
        low: The lower end of the interval, over queries drawn anew.
        high: The upper end.
        by_query: [queries], float64; NaN where a query has no value, which is left out.
    """

    value: float
    low: float
    high: float
    by_query: Tensor

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f} {self.high:.3f}]"


def query_mean(values: Tensor) -> QueryMean:
    """The mean of one value per query, and its interval by 1,000 resamples.

    Args:
        values: [queries]; NaN where a query has none.

    Returns:
        NaN throughout where no query has a value.

    Example:
        >>> import torch
        >>> print(query_mean(torch.tensor([0.0, 1.0] * 50)))
        0.500 [0.400 0.600]
    """
    values = values.detach().cpu().double()
    known = values[~values.isnan()]
    if not len(known):
        return QueryMean(math.nan, math.nan, math.nan, values)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(known), (RESAMPLES, len(known)), generator=generator)
    low, high = interval(known[drawn].mean(1))
    return QueryMean(float(known.mean()), low, high, values)


def interval(draws: Tensor) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return low, high
