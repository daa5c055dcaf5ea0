"""Whether the examples that explain a prediction are of its class.

K. Hanawa et al., "Evaluation of similarity-based explanations", 2021,
https://arxiv.org/abs/2006.04528.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from tracin.analysis.edited_data import whole_labels
from tracin.analysis.given_scores import as_numbers
from tracin.analysis.rank_stability import chance_in_top
from tracin.checks import count_within
from tracin.errors import DataError, QueryError
from tracin.evaluate.query_mean import QueryMean, query_mean
from tracin.results.table import aligned, numbers
from tracin.results.tabular import Tabular


@final
@dataclass(frozen=True, eq=False, repr=False)
class IdenticalClass(Tabular):
    """How many of the first proponents are of the query's class. Printing it gives a table.

    Attributes:
        k: How many proponents are looked at.
        first: Whether the first one is, per query; ties by the chance of each to lead.
        top: The share of the first k that are, per query.
        chance: The share of the training data that are, on average over queries.
    """

    k: int
    first: QueryMean
    top: QueryMean
    chance: float

    def columns(self) -> dict[str, np.ndarray]:
        """One row per query."""
        return {
            "query": np.arange(len(self.top.by_query)),
            "first": numbers(self.first.by_query),
            f"top {self.k}": numbers(self.top.by_query),
        }

    def __str__(self) -> str:
        rows = [("first proponent", self.first), (f"first {self.k}", self.top)]
        table = aligned(["of the query's class", "share"], rows)
        return f"{table}\nby chance {self.chance:.3f}"


def identical_class(
    scores: Any, train_labels: Any, query_labels: Any, k: int = 10
) -> IdenticalClass:
    """The share of each query's first k proponents that have its label.

    A check of reason, not of truth: examples of another class may well teach a class.

    Args:
        scores: [train, queries], as `influence` returns it.
        train_labels: [train]; whole numbers.
        query_labels: [queries]; the labels whose losses are explained.
        k: How many proponents to look at.

    Raises:
        DataError: Labels do not fit the scores.
        QueryError: k is no number of examples.
        NonFiniteError: A score is NaN.

    Example:
        >>> from tracin.evaluate import identical_class
        >>> print(identical_class([[0.9, 0.1], [0.5, 0.2], [0.1, 0.3]], [0, 0, 1], [0, 1], k=2))
        of the query's class  share
        first proponent       1.000 [1.000 1.000]
        first 2               0.750 [0.500 1.000]
        by chance 0.500
    """
    values = as_numbers(scores, "scores")
    ours, theirs = whole_labels(train_labels), whole_labels(query_labels)
    if tuple(values.shape) != (len(ours), len(theirs)):
        raise DataError(
            "One label per training example and one per query are needed; came "
            f"{len(ours)} and {len(theirs)} for scores {list(values.shape)}."
        )
    count_within(k, len(ours), f"train holds {len(ours)} examples", QueryError, "proponents")
    is_alike = (ours[:, None] == theirs).double()
    first, top = ((chance_in_top(values, many) * is_alike).sum(0) / many for many in (1, k))
    return IdenticalClass(k, query_mean(first), query_mean(top), float(is_alike.mean()))
