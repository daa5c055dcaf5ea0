"""Exact scores of an index's candidates, from the model itself."""

import numpy as np
import torch
from torch import Tensor

from tracin.data import Examples
from tracin.influence.walk import Question, Walk

# Scores held at once: [checkpoints, candidates, queries].
HELD = 1 << 26


def exact_scores(
    walk: Walk,
    train: Examples,
    queries: Examples,
    candidates: np.ndarray,
    batch_size: int | None,
    progress: bool | None,
) -> Tensor:
    """Each candidate's exact score by checkpoint: [queries, candidates, checkpoints].

    Queries are taken together, so that a candidate of several is visited once.

    Args:
        walk: The model with its weighted checkpoints.
        train: All training examples.
        queries: The queries.
        candidates: [queries, candidates]: positions in train.
        batch_size: How many examples go through the model at once; None finds out.
        progress: None shows a bar on a terminal alone.

    Raises:
        NonFiniteError: A loss or gradient is NaN or infinite.
    """
    count, each = candidates.shape
    found = torch.empty(count, each, walk.checkpoints)
    at_once = max(1, int((HELD / (walk.checkpoints * each)) ** 0.5))
    for start in range(0, count, at_once):
        span = range(start, min(start + at_once, count))
        union, places = np.unique(candidates[span.start : span.stop], return_inverse=True)
        places = torch.from_numpy(places.reshape(len(span), each))
        some = train.subset(union.tolist())
        scores = torch.zeros(walk.checkpoints, len(union), len(span))
        for step in walk.steps(
            some, range(len(some)), Question(queries, span), batch_size, progress, "rescoring"
        ):
            if step.scores is not None:
                rows = slice(step.positions.start, step.positions.stop)
                scores[step.checkpoint, rows] = step.scores.float().cpu()
        rows = torch.arange(len(span))[:, None].expand_as(places)
        found[span.start : span.stop] = scores[:, places, rows].permute(1, 2, 0)
    return found
