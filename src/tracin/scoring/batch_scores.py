"""The scores of one batch at one checkpoint."""

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from tracin.results.example_facts import ExampleFacts


@final
@dataclass(frozen=True)
class BatchScores:
    """What one batch gave at one checkpoint, on the model's device, weighted.

    Attributes:
        checkpoint: The number of the checkpoint.
        positions: The batch's examples.
        scores: [examples, queries].
        norms: Squared gradient lengths: [examples].
        norms_apart: Those of the parameters that the request sets apart: [examples].
        query_norms: The queries' squared gradient lengths: [queries].
        outcome: What the loss returned.
        query_facts: What their loss, or what takes its place, returned for the queries: [queries].
    """

    checkpoint: int
    positions: range
    scores: Tensor | None
    norms: Tensor | None
    norms_apart: Tensor | None
    query_norms: Tensor | None
    outcome: Any
    query_facts: ExampleFacts | None = None
