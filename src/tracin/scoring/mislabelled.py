"""What one pass tells about each label: loss, margins, EL2N, self-influence, a suggestion."""

import warnings
from collections.abc import Collection
from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.data import places
from tracin.errors import LossError, MemorisedWarning
from tracin.host import to_host
from tracin.losses import Outcome
from tracin.precision import in_double
from tracin.results.held_out import HeldOut
from tracin.results.suspects import OF_CLASSES, Suspects, mean_rank
from tracin.scoring.batch_scores import BatchScores
from tracin.scoring.label_scores import error_length, lead_of_label, probabilities_of

# Probabilities that are held at once, whatever the size of the data: 256 MB in float64.
HELD = 1 << 25
# Agreement with the given labels from which a net may have learnt wrong ones by heart, and by how
# much more than on held-out data. Below, the columns still found most of them: docs/decisions.md.
NEARLY_ALL, BEYOND_HELD_OUT = 0.98, 0.02


def classes_of(outcome: Outcome) -> int:
    """How many classes there are.

    Raises:
        LossError: Not each example has one label, or there are not two classes.
    """
    shape = tuple(outcome.logits.shape)
    if len(shape) != 2 or shape[1] < 2:
        raise LossError(
            "find_mislabelled judges one label per example among at least two classes, but the "
            f"scores have shape {shape} instead of [examples, classes]."
        )
    return shape[1]


@final
class Judgement:
    """Sums over checkpoints, one entry per training example.

    Probabilities, [examples, classes], are held for one block of examples at a time.

    Args:
        examples: How many there are.
        averaged: The checkpoints that means are taken over.
        last: The last checkpoint.
    """

    default = "loss_and_margin"
    rankings = OF_CLASSES

    def __init__(self, examples: int, averaged: Collection[int], last: int) -> None:
        def zeros() -> Tensor:
            return torch.zeros(examples, dtype=torch.float64)

        self._averaged, self._last = averaged, last
        self._own, self._own_last_layer = zeros(), zeros()
        self._loss, self._margin, self._aum, self._el2n = zeros(), zeros(), zeros(), zeros()
        self._final_loss, self._final_margin = zeros(), zeros()
        self._given_probability, self._suggested_probability = zeros(), zeros()
        self._given = torch.zeros(examples, dtype=torch.int64)
        self._suggested = torch.zeros(examples, dtype=torch.int64)
        self._agreed = 0

    def open(self, block: range, classes: int) -> None:
        """Begin a block of examples."""
        self._block = block
        self._probabilities = torch.zeros(len(block), classes, dtype=torch.float64)

    def close(self) -> None:
        """End the block: the best other class of each of its examples is settled."""
        rows = slice(self._block.start, self._block.stop)
        given = self._given[rows, None]
        means = self._probabilities / len(self._averaged)
        self._given_probability[rows] = means.gather(1, given)[:, 0]
        best = means.scatter_(1, given, -1.0).max(1)
        self._suggested_probability[rows], self._suggested[rows] = best.values, best.indices

    def take(self, step: BatchScores) -> None:
        """Add one batch at one checkpoint."""
        outcome = step.outcome
        rows = step.rows
        _add(self._own, rows, step.norms)
        _add(self._own_last_layer, rows, step.norms_apart)
        is_averaged, is_last = step.checkpoint in self._averaged, step.checkpoint == self._last
        if not is_averaged and not is_last:
            return
        there = probabilities_of(outcome)
        wanted = [lead_of_label(there, outcome.labels)]
        if is_averaged:
            leads = lead_of_label(in_double(outcome.logits.detach()), outcome.labels)
            wanted += [leads, error_length(there, outcome.labels), there, outcome.labels]
        losses, (margins, *others) = step.losses, _on_host(wanted)
        if is_last:
            _add(self._final_loss, rows, losses)
            _add(self._final_margin, rows, margins)
        if is_averaged:
            leads, lengths, probabilities, labels = others
            within = places(step.positions, self._block.start)
            self._probabilities[within] += probabilities
            self._given[rows] = labels.to(self._given)
            self._agreed += int((margins > 0).sum())
            _add(self._loss, rows, losses)
            _add(self._margin, rows, margins)
            _add(self._aum, rows, leads)
            _add(self._el2n, rows, lengths)

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
        self._warn_if_memorised(held_out)
        count = len(self._averaged)
        loss, margin = self._loss / count, self._margin / count
        table = Suspects(
            ids=ids,
            positions=np.arange(len(ids)),
            given_labels=self._given.numpy(),
            suggested_labels=self._suggested.numpy(),
            scores={
                "given_probability": self._given_probability,
                "suggested_probability": self._suggested_probability,
                "loss_and_margin": mean_rank(loss, -margin),
                "loss": loss,
                "margin": margin,
                "aum": self._aum / count,
                "el2n": self._el2n / count,
                "final_loss": self._final_loss,
                "final_margin": self._final_margin,
                "self_influence": self._own,
                "self_influence_last": self._own_last_layer,
            },
            ranked_by=rank_by,
            checkpoints=names,
            held_out=held_out,
        )
        return table.ranked(rank_by)

    def _warn_if_memorised(self, held_out: HeldOut | None) -> None:
        agreement = self._agreed / (len(self._given) * len(self._averaged))
        expected = 0.0
        if held_out is not None and held_out.accuracies is not None:
            expected = float(held_out.accuracies[list(held_out.best)].mean()) + BEYOND_HELD_OUT
        if agreement < max(NEARLY_ALL, expected):
            return
        compared = "" if held_out is None else f", and with {expected - BEYOND_HELD_OUT:.1%} of "
        compared += "" if held_out is None else "those of the validation data"
        warnings.warn(
            f"At the checkpoints that the columns are averaged over, the net agrees with "
            f"{agreement:.1%} of the given labels{compared}: if some of them are wrong, it has "
            "learnt them by heart, and they look like right ones. Give earlier checkpoints, or "
            "validation=, which takes those that do best on held-out data; or train on a part of "
            "the data and rank the rest.",
            MemorisedWarning,
            stacklevel=2,
        )


def _add(total: Tensor, rows: slice | Tensor, share: Tensor | None) -> None:
    if share is not None:
        total[rows] += share


def _on_host(tensors: list[Tensor]) -> list[Tensor]:
    return [each for each in to_host(tensors) if each is not None]
