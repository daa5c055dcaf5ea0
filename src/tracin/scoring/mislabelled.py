"""What one pass tells about each label: self-influence, loss, EL2N, margin, a suggestion."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.errors import LossError
from tracin.losses import Outcome
from tracin.results.suspects import OF_CLASSES, Suspects
from tracin.scoring.batch_scores import BatchScores

# Probabilities that are held at once, whatever the size of the data: 256 MB in float32.
HELD = 1 << 26


def classes_of(outcome: Outcome) -> int:
    """How many classes there are.

    Raises:
        LossError: Not each example has one label.
    """
    if outcome.logits.ndim != 2:
        raise LossError(
            "find_mislabelled judges one label per example, but the scores have shape "
            f"{tuple(outcome.logits.shape)} instead of [examples, classes]."
        )
    return outcome.logits.shape[1]


@final
class Judgement:
    """Sums over checkpoints, one entry per training example.

    Probabilities, [examples, classes], are held for one block of examples at a time.
    """

    rankings = OF_CLASSES

    def __init__(self, examples: int, checkpoints: int) -> None:
        def zeros() -> Tensor:
            return torch.zeros(examples, dtype=torch.float64)

        self._checkpoints = checkpoints
        self._own, self._last, self._loss = zeros(), zeros(), zeros()
        self._el2n, self._margin = zeros(), zeros()
        self._given = torch.zeros(examples, dtype=torch.int64)
        self._suggested = torch.zeros(examples, dtype=torch.int64)

    def open(self, block: range, classes: int) -> None:
        """Begin a block of examples."""
        self._block = block
        self._probabilities = torch.zeros(len(block), classes)

    def close(self) -> None:
        """End the block: the likeliest class of each of its examples is settled."""
        rows = slice(self._block.start, self._block.stop)
        self._suggested[rows] = self._probabilities.argmax(1)

    def take(self, step: BatchScores) -> None:
        """Add one batch at one checkpoint."""
        outcome = step.outcome
        logits, labels = outcome.logits.detach(), outcome.labels
        rows = slice(step.positions.start, step.positions.stop)
        probabilities = logits.float().softmax(1)
        own = probabilities.gather(1, labels[:, None])
        errors = probabilities.scatter_add(1, labels[:, None], -torch.ones_like(own))
        others = probabilities.scatter(1, labels[:, None], -1.0).amax(1)
        within = slice(rows.start - self._block.start, rows.stop - self._block.start)
        self._probabilities[within] += probabilities.cpu()
        self._given[rows] = labels.cpu()
        for total, share in (
            (self._own, step.norms),
            (self._last, step.norms_apart),
            (self._loss, outcome.losses.detach()),
            (self._el2n, errors.norm(dim=1)),
            (self._margin, own[:, 0] - others),
        ):
            if share is not None:
                total[rows] += share.cpu()

    def suspects(self, ids: np.ndarray, rank_by: str) -> Suspects:
        """The ranked table."""
        table = Suspects(
            ids=ids,
            positions=np.arange(len(ids)),
            given_labels=self._given.numpy(),
            suggested_labels=self._suggested.numpy(),
            scores={
                "self_influence": self._own,
                "self_influence_last": self._last,
                "loss": self._loss / self._checkpoints,
                "el2n": self._el2n / self._checkpoints,
                "margin": self._margin / self._checkpoints,
            },
            ranked_by=rank_by,
        )
        return table.ranked(rank_by)
