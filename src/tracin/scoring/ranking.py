"""Keeps the strongest proponents and opponents of each query while blocks of scores stream by."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.data import places
from tracin.errors import LossError, QueryError
from tracin.losses import Outcome, TargetOutcome
from tracin.results.explanations import TopInfluences
from tracin.scoring.batch_scores import BatchScores
from tracin.scoring.top_k import top_k


@final
class Ranking:
    """The running top and bottom k of some queries."""

    def __init__(
        self, ids: np.ndarray, k: int, normalise: str | None, drop_misclassified: bool
    ) -> None:
        self._ids = ids
        self._k = k
        self._normalise = normalise
        self._drops = drop_misclassified
        self._best: list[tuple[Tensor, Tensor, Tensor] | None] = [None, None]
        self._candidates = 0

    def open(self, block: range, queries: int, checkpoints: int, dtype: torch.dtype) -> None:
        """Begin a block of training examples."""
        self._block = block
        self._scores = torch.zeros(checkpoints, len(block), queries, dtype=dtype)
        self._norms = torch.zeros(len(block), dtype=torch.float64)
        self._query_norms = torch.zeros(checkpoints, queries, dtype=torch.float64)
        self._is_wrong = torch.zeros(len(block), dtype=torch.bool)

    def take(self, step: BatchScores, factor: float) -> None:
        """Take up one batch's scores at one checkpoint; `factor` scales the queries' gradients."""
        rows = places(step.positions, self._block.start)
        columns = slice(step.queries.start, step.queries.stop)
        if step.scores is not None:
            found = factor * step.scores.to(self._scores)
            self._scores[step.checkpoint, rows, columns] = found
        if step.norms is not None:
            self._norms[rows] += step.norms.cpu()
        if step.query_norms is not None:
            norms = factor * factor * step.query_norms.cpu()
            self._query_norms[step.checkpoint, columns] = norms
        if self._drops:
            self._is_wrong[rows] = is_misclassified(step.outcome).cpu()

    def close(self) -> None:
        """End the block: merge its strongest into those found so far."""
        totals = self._scores.sum(0)
        scale = self._scale()
        if scale is not None:
            totals *= scale
        kept = int((~self._is_wrong).sum())
        self._candidates += kept
        for side, sign in enumerate((1, -1)):
            ranked = (sign * totals).T  # [queries, block]
            if kept < len(self._block):
                ranked = ranked.masked_fill(self._is_wrong, -torch.inf)
            chosen = top_k(ranked, min(self._k, kept)).places
            self._merge(side, sign, chosen, totals, scale)

    def proponents(self) -> TopInfluences:
        """The strongest proponents found: scores descending."""
        return self._hits(0)

    def opponents(self) -> TopInfluences:
        """The strongest opponents found: scores ascending."""
        return self._hits(1)

    def _scale(self) -> Tensor | None:
        """What the scores are multiplied by: [block or 1, queries]."""
        if self._normalise is None:
            return None
        lengths = self._query_norms.sum(0).sqrt()[None]  # [1, queries]
        if self._normalise == "cosine":
            lengths = lengths * self._norms.sqrt()[:, None]
        # A gradient of zero has influence zero, whatever its direction.
        scale = torch.where(lengths > 0, 1 / lengths, torch.zeros_like(lengths))
        return scale.to(self._scores)

    def _merge(
        self, side: int, sign: int, chosen: Tensor, totals: Tensor, scale: Tensor | None
    ) -> None:
        """Merge a block's strongest, by their places in it [queries, k], into the best so far."""
        queries = torch.arange(len(chosen))[:, None]
        shares = self._scores[:, chosen, queries].permute(1, 2, 0)
        if scale is not None:
            shares = shares * scale.expand_as(totals)[chosen, queries][:, :, None]
        found = totals[chosen, queries], chosen + self._block.start, shares
        before = self._best[side]
        if before is not None:
            found = tuple(torch.cat(pair, 1) for pair in zip(before, found, strict=True))
        best, positions, shares = found
        order = top_k(best, self._k, positions=positions, largest=sign > 0).places
        self._best[side] = (
            best.gather(1, order),
            positions.gather(1, order),
            shares.gather(1, order[:, :, None].expand(-1, -1, shares.shape[2])),
        )

    def _hits(self, side: int) -> TopInfluences:
        if self._candidates < self._k:
            raise QueryError(
                f"k={self._k} results were asked for, but only {self._candidates} training "
                "examples are left after drop_misclassified. Ask for fewer, or keep them all."
            )
        best = self._best[side]
        if best is None:
            raise QueryError("No block of training examples was ranked.")
        totals, positions, scores = best
        return TopInfluences(self._ids[positions.numpy()], positions.numpy(), totals, scores)


def is_misclassified(outcome: Outcome | TargetOutcome) -> Tensor:
    """Whether each example's highest score belongs to another class than its label: [examples].

    Raises:
        LossError: The examples have no classes.
    """
    if isinstance(outcome, TargetOutcome):
        raise LossError(
            "drop_misclassified leaves out examples whose class the model gets wrong, but this "
            "loss compares numbers and knows no classes. Leave the option out; find_mislabelled "
            "shows which targets the model misses most."
        )
    logits, labels = outcome.logits, outcome.labels
    is_wrong = logits.detach().argmax(1) != labels
    return is_wrong.flatten(1).any(1) if is_wrong.ndim > 1 else is_wrong
