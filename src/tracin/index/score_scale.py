"""Scores of an index's rows divided by the lengths of gradients, so that loud ones do not lead."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from tracin.index.store import Store
from tracin.index.table import add_weights, exact_self_influence


@final
@dataclass(frozen=True, eq=False)
class ScoreScale:
    """What each score is multiplied by: one over the lengths, over all checkpoints and weighted.

    Attributes:
        queries: [queries].
        rows: [rows] of the index; None for 1.
    """

    queries: Tensor
    rows: Tensor | None = None

    def some(self, which: slice) -> "ScoreScale":
        """That of some of the queries."""
        return replace(self, queries=self.queries[which])

    def of(self, first: int, rows: int) -> Tensor:
        """For the rows from the first on: [queries, rows or 1]."""
        by_query = self.queries[:, None]
        return by_query if self.rows is None else by_query * self.rows[first : first + rows]

    def at(self, positions: Tensor) -> Tensor:
        """For the rows of each query's own list: as positions, [queries, k]."""
        by_query = self.queries[:, None].expand(positions.shape)
        return by_query if self.rows is None else by_query * self.rows[positions]


def score_scale(
    store: Store,
    keys: Sequence[str],
    weights: Sequence[list[float]],
    squared_norms: Sequence[Tensor],
    normalise: str,
) -> ScoreScale:
    """The scale for "cosine", or for "query", by exact lengths.

    Args:
        store: Has the lengths of the rows' plain gradients.
        keys: The checkpoints.
        weights: [groups] at each of them.
        squared_norms: [queries, groups] at each of them: those of the queries.
        normalise: Which of the two.

    Raises:
        IndexingError: The index is incomplete, or a file is damaged.
    """
    squares = [
        own.double() @ torch.tensor(each, dtype=torch.float64)
        for own, each in zip(squared_norms, weights, strict=True)
    ]
    by_query = one_over(torch.stack(squares).sum(0)).float()
    if normalise == "query":
        return ScoreScale(by_query)
    by_key: dict[str, list[float]] = {}
    for key, each in zip(keys, weights, strict=True):
        add_weights(by_key, key, each)
    return ScoreScale(by_query, one_over(exact_self_influence(store, by_key)))


def one_over(squares: Tensor) -> Tensor:
    """One over the roots; 0 where there is no gradient, whose influence is zero.

    Example:
        >>> one_over(torch.tensor([4.0, 0.0]))
        tensor([0.5000, 0.0000])
    """
    return torch.where(squares > 0, squares.clamp(min=0).rsqrt(), 0.0)
