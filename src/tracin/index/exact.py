"""Exact scores of an index's candidates, from the model itself."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tracin.data import Examples
from tracin.results.explanations import TopInfluences
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.score_request import ScoreRequest
from tracin.scoring.settled import settled
from tracin.scoring.top_k import top_k

if TYPE_CHECKING:
    from tracin.index.strongest import Strongest


@settled
def exact_scores(
    walk: CheckpointPass,
    train: Examples,
    queries: Examples,
    candidates: np.ndarray,
    memory: int,
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
        memory: Bytes that scores, and queries' gradients written out, may take, about.
        batch_size: How many examples go through the model at once; None finds out.
        progress: None shows a bar on a terminal alone.

    Raises:
        NonFiniteError: A loss or gradient is NaN or infinite.
    """
    count, each = candidates.shape
    found = torch.empty(count, each, walk.checkpoints)
    numbers = sum(one.numel() for one in walk.gradients.parameters.values())
    by_scores = int((memory / (4 * walk.checkpoints * each)) ** 0.5)
    at_once = max(1, min(by_scores, memory // (4 * numbers)))
    for start in range(0, count, at_once):
        span = range(start, min(start + at_once, count))
        union, places = np.unique(candidates[span.start : span.stop], return_inverse=True)
        places = torch.from_numpy(places.reshape(len(span), each))
        some = train.subset(union.tolist())
        scores = torch.zeros(walk.checkpoints, len(union), len(span))
        for step in walk.steps(
            some, range(len(some)), ScoreRequest(queries, span), batch_size, progress, "rescoring"
        ):
            if step.scores is not None:
                rows = slice(step.positions.start, step.positions.stop)
                scores[step.checkpoint, rows] = step.scores.float().cpu()
        rows = torch.arange(len(span))[:, None].expand_as(places)
        found[span.start : span.stop] = scores[:, places, rows].permute(1, 2, 0)
    return found


def exact_hits(
    walk: CheckpointPass,
    train: Examples,
    queries: Examples,
    candidates: tuple[np.ndarray, np.ndarray],
    bounds: tuple[Tensor, Tensor] | None,
    k: int,
    memory: int,
    batch_size: int | None,
    progress: bool | None,
) -> tuple[TopInfluences, TopInfluences]:
    """The best k of some candidates on each side, by the model itself.

    Args:
        walk: The model with its weighted checkpoints.
        train: All training examples.
        queries: The queries.
        candidates: Those for proponents, and for opponents: [queries, candidates]; -1 is nobody.
        bounds: What no other example's score is expected to exceed, or to fall below: [queries]
            each; None where nobody knows.
        k: How many of each.
        memory: As for `exact_scores`, like those that follow.
        batch_size: How many examples go through the model at once; None finds out.
        progress: None shows a bar on a terminal alone.
    """
    # A candidate of both sides is visited once. Of equal scores the first position comes first.
    sides = [np.sort(one, 1) for one in candidates]
    both = np.concatenate(sides, 1)
    scores = exact_scores(
        walk, train, queries, both.clip(min=0), memory, batch_size, progress
    ).split([one.shape[1] for one in sides], 1)
    limits = (None, None) if bounds is None else bounds
    proponents, opponents = (
        _best(train.ids, chosen, found, k, sign, bound)
        for chosen, found, sign, bound in zip(sides, scores, (1, -1), limits, strict=True)
    )
    return proponents, opponents


def _best(
    ids: np.ndarray, candidates: np.ndarray, scores: Tensor, k: int, sign: int, bound: Tensor | None
) -> TopInfluences:
    totals = scores.sum(2)
    ranked = (sign * totals).masked_fill(torch.from_numpy(candidates < 0), -torch.inf)
    order = top_k(ranked, k).places
    positions = np.take_along_axis(candidates, order.numpy(), 1)
    best = totals.gather(1, order)
    shares = scores.gather(1, order[:, :, None].expand(-1, -1, scores.shape[2]))
    sure = None if bound is None else sign * best > (sign * bound)[:, None]
    return TopInfluences(ids[positions], positions, best, shares, bounds=bound, sure=sure)


def cut_at(side: "Strongest", count: int, is_sure: bool = True) -> tuple[np.ndarray, Tensor]:
    """The first `count` of each query, and what all others are not expected to exceed.

    Args:
        side: At least one more than `count`, if there are so many rows.
        count: How many are candidates.
        is_sure: Whether the others' limits can be relied on; if not, they may be anything.

    Returns:
        [queries, count], and [queries]: infinite where there are no others, or
            where they may be anything.
    """
    if side.values is None:
        raise RuntimeError("no rows were read")
    nobody = torch.full((len(side.values),), -side.sign * torch.inf)
    if side.values.shape[1] <= count:
        return side.positions[:, :count].numpy(), nobody
    bound = side.values[:, count]
    if not is_sure:
        bound = torch.where(bound == nobody, bound, -nobody)
    return side.positions[:, :count].numpy(), bound
