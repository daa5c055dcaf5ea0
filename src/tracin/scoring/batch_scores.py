"""The scores of one batch at one checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from tracin.data import places
from tracin.host import is_remote, to_host
from tracin.late_checks import LateChecks
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
    """What one batch gave at one checkpoint, weighted.

    Attributes:
        checkpoint: The number of the checkpoint.
        positions: The batch's examples.
        queries: Which queries of the request the scores are for: all, unless their gradients did
            not fit in memory together. Then a batch comes once for each run of queries.
        scores: [examples, queries].
        norms: Squared gradient lengths: [examples]; with the first run of queries alone.
        norms_apart: Those of the parameters that the request sets apart: [examples].
        query_norms: The queries' squared gradient lengths: [queries].
        losses: [examples].
        outcome: What the loss returned, on the model's device.
        query_left_out: What queries of low rank leave out; None where they are exact.
        query_facts: What their loss, or what takes its place, returned for the queries: [queries].
        facts: What the loss says of the batch's examples, if the request asks for it: [examples].
    """

    checkpoint: int
    positions: Sequence[int]
    queries: range
    scores: Tensor | None
    norms: Tensor | None
    norms_apart: Tensor | None
    query_norms: Tensor | None
    losses: Tensor
    outcome: Any
    query_facts: ExampleFacts | None = None
    facts: ExampleFacts | None = None
    query_left_out: LeftOut | None = None

    @property
    def rows(self) -> slice | Tensor:
        """Where the examples are in a tensor of all."""
        return places(self.positions)

    def on_host(
        self, checks: LateChecks | None, meanwhile: Callable[[], None] | None = None
    ) -> "BatchScores":
        """The same with all but the outcome on the host, after one wait.

        Args:
            checks: What the pass over the batch has noted; None where it looked at once.
            meanwhile: What to do while the device computes.

        Raises:
            LookAgainError: A check found something.
        """
        if checks is None and not is_remote(self.losses.device):
            return self
        known = self.facts
        facts = (None,) * 3 if known is None else (known.losses, known.labels, known.predicted)
        sums = (self.scores, self.norms, self.norms_apart, self.query_norms)
        fetch = to_host if checks is None else checks.fetched
        scores, norms, apart, query_norms, losses, *facts = fetch(
            [*sums, self.losses, *facts], meanwhile
        )
        if losses is None:
            raise RuntimeError("a batch without losses; a bug in tracin")
        return replace(
            self,
            scores=scores,
            norms=norms,
            norms_apart=apart,
            query_norms=query_norms,
            losses=losses,
            facts=None if known is None else ExampleFacts.of(*facts),
        )
