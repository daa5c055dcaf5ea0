"""What one pass tells about each target of a regression: residual, loss, self-influence."""

from collections.abc import Collection
from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.errors import LossError
from tracin.host import to_host
from tracin.losses import TargetOutcome
from tracin.results.held_out import HeldOut
from tracin.results.suspects import OF_TARGETS, Suspects
from tracin.scoring.batch_scores import BatchScores


@final
class TargetJudgement:
    """Sums over checkpoints, one entry per training example.

    Args:
        examples: How many there are.
        averaged: The checkpoints that means are taken over.
        last: The last checkpoint.
        first: What the loss says of the first example.

    Raises:
        LossError: Not each example has one target.
    """

    default = "residual"
    rankings = OF_TARGETS

    def __init__(
        self, examples: int, averaged: Collection[int], last: int, first: TargetOutcome
    ) -> None:
        outputs = first.predictions.shape[1]
        if outputs != 1:
            raise LossError(
                "find_mislabelled judges one target per example, but this model predicts "
                f"{outputs} numbers per example. Pass a function as the loss that compares one "
                "of them, with a method outcome(model, batch) -> tracin.TargetOutcome."
            )

        def zeros() -> Tensor:
            return torch.zeros(examples, dtype=torch.float64)

        self._averaged, self._last = averaged, last
        self._own, self._own_last_layer = zeros(), zeros()
        self._loss, self._final_loss = zeros(), zeros()
        self._targets, self._predictions, self._final_prediction = zeros(), zeros(), zeros()

    def open(self, block: range, classes: int) -> None:
        """Begin a block of examples."""

    def close(self) -> None:
        """End the block."""

    def take(self, step: BatchScores) -> None:
        """Add one batch at one checkpoint."""
        outcome = step.outcome
        rows = step.rows
        targets, predictions = to_host([outcome.targets[:, 0], outcome.predictions[:, 0]])
        if targets is not None:
            self._targets[rows] = targets.double()
        losses = step.losses
        shares = [(self._own, step.norms), (self._own_last_layer, step.norms_apart)]
        if step.checkpoint in self._averaged:
            shares += [(self._loss, losses), (self._predictions, predictions)]
        if step.checkpoint == self._last:
            shares += [(self._final_loss, losses), (self._final_prediction, predictions)]
        for total, share in shares:
            if share is not None:
                total[rows] += share

    def suspects(
        self, ids: np.ndarray, rank_by: str, names: tuple[str, ...], held_out: HeldOut | None
    ) -> Suspects:
        """The ranked table.

        Args:
            ids: [train].
            rank_by: The column that leads.
            names: The checkpoints that means are taken over.
            held_out: How they were chosen.
        """
        predictions = self._predictions / len(self._averaged)
        table = Suspects(
            ids=ids,
            positions=np.arange(len(ids)),
            given_labels=self._targets.numpy(),
            suggested_labels=predictions.numpy(),
            scores={
                "residual": self._targets - predictions,
                "loss": self._loss / len(self._averaged),
                "final_residual": self._targets - self._final_prediction,
                "final_loss": self._final_loss,
                "self_influence": self._own,
                "self_influence_last": self._own_last_layer,
            },
            ranked_by=rank_by,
            checkpoints=names,
            held_out=held_out,
        )
        return table.ranked(rank_by)
