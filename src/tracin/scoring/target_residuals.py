"""What one pass tells about each target of a regression: self-influence, loss, residual."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.errors import LossError
from tracin.losses import TargetOutcome
from tracin.results.suspects import OF_TARGETS, Suspects
from tracin.scoring.batch_scores import BatchScores


@final
class TargetJudgement:
    """Sums over checkpoints, one entry per training example.

    Args:
        examples: How many there are.
        checkpoints: How many there are.
        first: What the loss says of the first example.

    Raises:
        LossError: Not each example has one target.
    """

    rankings = OF_TARGETS

    def __init__(self, examples: int, checkpoints: int, first: TargetOutcome) -> None:
        outputs = first.predictions.shape[1]
        if outputs != 1:
            raise LossError(
                "find_mislabelled judges one target per example, but this model predicts "
                f"{outputs} numbers per example. Pass a function as the loss that compares one "
                "of them, with a method outcome(model, batch) -> tracin.TargetOutcome."
            )

        def zeros() -> Tensor:
            return torch.zeros(examples, dtype=torch.float64)

        self._checkpoints = checkpoints
        self._own, self._last, self._loss = zeros(), zeros(), zeros()
        self._targets, self._predictions = zeros(), zeros()

    def open(self, block: range, classes: int) -> None:
        """Begin a block of examples."""

    def close(self) -> None:
        """End the block."""

    def take(self, step: BatchScores) -> None:
        """Add one batch at one checkpoint."""
        outcome = step.outcome
        rows = slice(step.positions.start, step.positions.stop)
        self._targets[rows] = outcome.targets[:, 0].detach().cpu().double()
        for total, share in (
            (self._own, step.norms),
            (self._last, step.norms_apart),
            (self._loss, outcome.losses.detach()),
            (self._predictions, outcome.predictions[:, 0].detach()),
        ):
            if share is not None:
                total[rows] += share.cpu()

    def suspects(self, ids: np.ndarray, rank_by: str) -> Suspects:
        """The ranked table."""
        predictions = self._predictions / self._checkpoints
        table = Suspects(
            ids=ids,
            positions=np.arange(len(ids)),
            given_labels=self._targets.numpy(),
            suggested_labels=predictions.numpy(),
            scores={
                "self_influence": self._own,
                "self_influence_last": self._last,
                "loss": self._loss / self._checkpoints,
                "residual": self._targets - predictions,
            },
            ranked_by=rank_by,
        )
        return table.ranked(rank_by)
