"""The scores of one batch at one checkpoint."""

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor


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
    """

    checkpoint: int
    positions: range
    scores: Tensor | None
    norms: Tensor | None
    norms_apart: Tensor | None
    query_norms: Tensor | None
    outcome: Any
