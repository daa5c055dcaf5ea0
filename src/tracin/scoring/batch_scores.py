"""The scores of one batch at one checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tracin.data import places
from tracin.results.example_facts import ExampleFacts


@final
@dataclass(frozen=True, eq=False)
class LeftOut:
    """What queries of low rank leave out at one checkpoint, as weighted squared lengths.

    Attributes:
        lost: Of what is left out: [queries].
        whole: Of the gradients themselves: [queries].
    """

    lost: Tensor
    whole: Tensor

    @classmethod
    def none(cls, queries: int) -> "LeftOut":
        """Of queries of which nothing is known yet."""
        return cls(*(torch.zeros(queries, dtype=torch.float64) for _ in range(2)))


@final
@dataclass(frozen=True)
class BatchScores:
    """What one batch gave at one checkpoint, on the model's device, weighted.

    Attributes:
        checkpoint: The number of the checkpoint.
        positions: The batch's examples.
        queries: Which queries of the request the scores are for: all, unless their gradients did
            not fit in memory together. Then a batch comes once for each run of queries.
        scores: [examples, queries].
        norms: Squared gradient lengths: [examples]; with the first run of queries alone.
        norms_apart: Those of the parameters that the request sets apart: [examples].
        query_norms: The queries' squared gradient lengths: [queries].
        outcome: What the loss returned.
        query_left_out: What queries of low rank leave out; None where they are exact.
        query_facts: What their loss, or what takes its place, returned for the queries: [queries].
    """

    checkpoint: int
    positions: Sequence[int]
    queries: range
    scores: Tensor | None
    norms: Tensor | None
    norms_apart: Tensor | None
    query_norms: Tensor | None
    outcome: Any
    query_facts: ExampleFacts | None = None
    query_left_out: LeftOut | None = None

    @property
    def rows(self) -> slice | Tensor:
        """Where the examples are in a tensor of all."""
        return places(self.positions)
