"""Whether the training examples that a query came from are found at the top of its list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.analysis.arrays import cpu_tensor
from tracin.analysis.given_scores import as_numbers
from tracin.analysis.rank_stability import chance_in_top
from tracin.checks import count_within
from tracin.errors import DataError, QueryError
from tracin.evaluate.query_mean import QueryMean, query_mean
from tracin.results.table import aligned, numbers
from tracin.results.tabular import Tabular


@final
@dataclass(frozen=True, eq=False, repr=False)
class Retrieval(Tabular):
    """How near the top each query's sources stand. Printing it gives a table.

    Attributes:
        ranks: [queries]; the place of the first source, from 1. Among equal scores it is the middle
            of their places.
        recall: The share of each query's sources among the first k, by k.
        examples: How many examples are ranked.
    """

    ranks: Tensor
    recall: Mapping[int, QueryMean]
    examples: int

    @property
    def mrr(self) -> QueryMean:
        """The mean reciprocal rank of the first source: 1 if it always leads."""
        return query_mean(1 / self.ranks)

    def columns(self) -> dict[str, np.ndarray]:
        """One row per query: the rank of its first source, and recall at each k."""
        return {
            "query": np.arange(len(self.ranks)),
            "rank": numbers(self.ranks),
            **{f"recall@{k}": numbers(each.by_query) for k, each in self.recall.items()},
        }

    def __str__(self) -> str:
        rows: list[tuple[str, object]] = [("MRR", self.mrr)]
        rows += [(f"recall@{k}", each) for k, each in self.recall.items()]
        rows.append(("median rank", float(self.ranks.median())))
        head = f"sources of {len(self.ranks)} queries among {self.examples} examples"
        return f"{head}\n{aligned(['measure', 'mean over queries'], rows)}"


def retrieval(scores: Any, sources: Any, at: Sequence[int] = (1, 10)) -> Retrieval:
    """Rank the examples by each query's scores, and look where its known sources stand.

    Sources are known where queries were made from training examples: paraphrases of facts, copies,
    crops.

    Args:
        scores: [train, queries], as `influence` returns it.
        sources: Each query's sources: one position in train per query, a list of positions per
            query, or bool [train, queries].
        at: The numbers k of recall@k.

    Raises:
        DataError: Sources do not fit the scores, or a query has none.
        QueryError: k is no number of examples.
        NonFiniteError: A score is NaN.

    Example:
        >>> from tracin.evaluate import retrieval
        >>> scores = [[0.9, 0.1], [0.5, 0.2], [0.1, 0.3]]
        >>> print(retrieval(scores, [0, 1], at=[1, 2]))
        sources of 2 queries among 3 examples
        measure      mean over queries
        MRR          0.750 [0.500 1.000]
        recall@1     0.500 [0.000 1.000]
        recall@2     1.000 [1.000 1.000]
        median rank  1
    """
    values = as_numbers(scores, "scores")
    if values.ndim != 2 or not values.numel():
        raise DataError(f"scores are [train, queries]; {list(values.shape)} came.")
    is_source = sources_of(sources, values)
    examples = len(values)
    for k in at:
        count_within(k, examples, f"train holds {examples} examples", QueryError, "examples")
    best = values.masked_fill(~is_source, -torch.inf).amax(0)  # [queries]
    above, level = (values > best).sum(0), (values == best).sum(0)
    ranks = above + (level + 1) / 2
    inside = {k: (chance_in_top(values, k) * is_source).sum(0) / is_source.sum(0) for k in at}
    recall = {k: query_mean(each) for k, each in inside.items()}
    return Retrieval(ranks.double(), recall, examples)


def sources_of(sources: Any, values: Tensor) -> Tensor:
    """Which examples are a query's sources: bool [train, queries].

    Raises:
        DataError: They do not fit, or a query has none.
    """
    examples, queries = values.shape
    is_mask = getattr(sources, "ndim", 1) == 2
    if is_mask:
        mask = cpu_tensor(sources)
        if mask.dtype != torch.bool or mask.shape != values.shape:
            raise DataError(
                f"sources as a mask are bool [train, queries], here {[examples, queries]}; "
                f"{list(mask.shape)} of {mask.dtype} came."
            )
    else:
        if len(sources) != queries:
            raise DataError(
                f"sources holds one entry per query, {queries}; {len(sources)} came: positions in "
                "train, or lists of them."
            )
        mask = torch.zeros(examples, queries, dtype=torch.bool)
        for query, each in enumerate(sources):
            at = torch.atleast_1d(cpu_tensor(each))
            whole = at.ndim == 1 and (at.dtype == torch.int64 or not len(at))
            if not whole or (len(at) and not 0 <= int(at.min()) <= int(at.max()) < examples):
                raise DataError(
                    f"The sources of query {query} are positions in train, from 0 to "
                    f"{examples - 1}; {at.tolist()} came."
                )
            mask[at.long(), query] = True
    without = (~mask.any(0)).nonzero()
    if len(without):
        raise DataError(
            f"Query {int(without[0])} has no source ({len(without)} in all). Leave out the columns "
            "of queries whose sources are not known."
        )
    return mask
