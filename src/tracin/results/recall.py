"""The share of the strongest examples that an estimate finds, measured on a sample."""

from dataclasses import dataclass
from typing import final

import numpy as np

from tracin.printed import Printed


@final
@dataclass(frozen=True, repr=False)
class Recall(Printed):
    """The share of the true k strongest that were found.

    Attributes:
        k: Results per query and side.
        queries: The number of queries that it was measured on.
        proponents: The share of the true k strongest proponents, mean over the queries.
        opponents: The same of opponents.
        against: The queries and the reference, in words.
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
    """The mean share of the true results that were found.

    Args:
        found: [queries, k].
        true: [queries, k].

    Example:
        >>> share_found(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 9]]))
        0.75
    """
    hits = [len(np.intersect1d(one, other)) for one, other in zip(found, true, strict=True)]
    return float(sum(hits)) / true.size
