"""How well two sets of scores agree, in two ways that can disagree.

*Pooled* takes every pair of a training example and a query together, so that the few queries with
the largest gradients decide it; *per query* is had for each query alone, and then averaged.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from tracin.errors import QueryError
from tracin.printed import Printed
from tracin.statistics import pearson, ranks


@final
@dataclass(frozen=True, eq=False, repr=False)
class Correlations(Printed):
    """How well some scores agree with others, both [train, queries].

    Attributes:
        pooled: Pearson's r over all pairs of a training example and a query at once. The few
            queries with the largest gradients decide it.
        by_query: [queries]; Pearson's r over the training examples, for each query alone. NaN
            where all of a query's scores are the same.
        ranks_by_query: [queries]; the same of the ranks (Spearman's), ties sharing theirs.
    """

    pooled: float
    by_query: Tensor
    ranks_by_query: Tensor

    @property
    def per_query(self) -> float:
        """The mean of `by_query`, every query counting the same."""
        return float(self.by_query.nanmean())

    @property
    def ranks_per_query(self) -> float:
        """The mean of `ranks_by_query`, every query counting the same."""
        return float(self.ranks_by_query.nanmean())

    def __str__(self) -> str:
        return (
            f"pooled r {self.pooled:.3f}; mean over {len(self.by_query)} "
            f"quer{'y' if len(self.by_query) == 1 else 'ies'}: r {self.per_query:.3f}, "
            f"rank r {self.ranks_per_query:.3f}"
        )


def correlations(scores: Tensor, reference: Tensor) -> Correlations:
    """How well scores agree with a reference, pooled and query by query.

    Args:
        scores: [train, queries].
        reference: The same shape.

    Raises:
        QueryError: The shapes differ, or are not [train, queries].

    Example:
        >>> import torch
        >>> from tracin.analysis.correlations import correlations
        >>> reference = torch.tensor([[-1.0, 10.0], [0.0, 0.0], [1.0, -10.0]])
        >>> told = correlations(reference * torch.tensor([-1.0, 1.0]), reference)
        >>> f"pooled {told.pooled:.2f}, per query {abs(told.per_query):.2f}"
        'pooled 0.98, per query 0.00'
    """
    if scores.ndim != 2 or scores.shape != reference.shape:
        raise QueryError(
            "Scores and reference are both [train, queries], of one shape; came "
            f"{list(scores.shape)} and {list(reference.shape)}."
        )
    ours, theirs = (each.detach().cpu().double() for each in (scores, reference))
    return Correlations(
        float(pearson(ours.flatten(), theirs.flatten())),
        pearson(ours, theirs),
        pearson(ranks(ours), ranks(theirs)),
    )
