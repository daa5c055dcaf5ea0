"""How many of the strongest an approximate answer holds, measured on a sample."""

from dataclasses import dataclass
from typing import final

import numpy as np


@final
@dataclass(frozen=True)
class Recall:
    """The share of the true k strongest that were found.

    Attributes:
        k: How many hits of each query.
        queries: On how many queries it was measured.
        proponents: The share of the true k strongest proponents, mean over the queries.
        opponents: The same of opponents.
        against: What the queries were, and what is taken for the truth.
    """

    k: int
    queries: int
    proponents: float
    opponents: float
    against: str

    def __str__(self) -> str:
        return (
            f"recall@{self.k}: {self.proponents:.3f} of proponents, {self.opponents:.3f} of "
            f"opponents, measured on {self.queries} {self.against}"
        )


def share_found(found: np.ndarray, true: np.ndarray) -> float:
    """The mean share of true hits [queries, k] that are among those found [queries, k].

    Example:
        >>> share_found(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 9]]))
        0.75
    """
    hits = [len(np.intersect1d(one, other)) for one, other in zip(found, true, strict=True)]
    return float(sum(hits)) / true.size
