"""Exact scores of an index's candidates, from the model itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor

from tracin.data import Examples, Size
from tracin.results.example_facts import ExampleFacts
from tracin.results.explanations import TopInfluences
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.facts_of import FactsSoFar
from tracin.scoring.ranking import Ranking
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
    batch_size: Size | None,
    progress: bool | None,
) -> tuple[Tensor, ExampleFacts | None]:
    """Each candidate's exact score by checkpoint: [queries, candidates, checkpoints].

    What the last checkpoint says of the candidates comes with them: [queries, candidates].

    Queries are taken together, so that a candidate of several is visited once.

    Args:
        walk: The model with its weighted checkpoints.
        train: All training examples.
        queries: The queries.
        candidates: [queries, candidates]: positions in train.
        memory: Bytes that scores may take, about, and as many for the queries' gradients.
        batch_size: Examples or tokens per model call; None finds the size.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        NonFiniteError: A loss or gradient is NaN or infinite.
    """
    count, each = candidates.shape
    found = torch.empty(count, each, walk.checkpoints)
    facts: list[ExampleFacts | None] = []
    at_once = max(1, int((memory / (4 * walk.checkpoints * each)) ** 0.5))
    for start in range(0, count, at_once):
        span = range(start, min(start + at_once, count))
        union, places = np.unique(candidates[span.start : span.stop], return_inverse=True)
        places = torch.from_numpy(places.reshape(len(span), each))
        some = train.subset(union.tolist())
        scores = torch.zeros(walk.checkpoints, len(union), len(span))
        known = FactsSoFar(len(union))
        for step in walk.steps(
            some,
            range(len(some)),
            ScoreRequest(queries, span, memory=memory, facts=True),
            batch_size,
            progress,
            "rescoring",
            fitted_on=train,
        ):
            if step.scores is not None:
                columns = slice(step.queries.start, step.queries.stop)
                scores[step.checkpoint, step.rows, columns] = step.scores.float().cpu()
                if step.facts is not None:
                    known.add(step.rows, step.facts)
        rows = torch.arange(len(span))[:, None].expand_as(places)
        found[span.start : span.stop] = scores[:, places, rows].permute(1, 2, 0)
        of_union = known.all()
        facts.append(None if of_union is None else of_union.at(places))
    return found, ExampleFacts.joined(facts)


@final
@dataclass(frozen=True, eq=False)
class Candidates:
    """The rows that the model scores, on each side of each query.

    Attributes:
        proponents: Positions in train, [queries, candidates]; -1 for none.
        opponents: [queries, candidates].
        bounds: What the scores of all other rows are not expected to exceed, and to fall below,
            [queries] each; None where that is unknown.
    """

    proponents: np.ndarray
    opponents: np.ndarray
    bounds: tuple[Tensor, Tensor] | None = None

    @classmethod
    def bounded(
        cls, found: Sequence[tuple["Strongest", "Strongest"]], count: int, *, is_sure: bool
    ) -> "Candidates":
        """The first `count` rows of each side, and the bounds that the next ones give.

        Args:
            found: For some of the queries each, the rows with the highest upper and with the
                lowest lower bounds, at least one more than `count` if there are so many.
            count: The number of candidates per query and side.
            is_sure: Whether bounds can be relied on. If not, they are infinite.
        """
        tops, bottoms = (
            [_cut(side, count, is_sure) for side in sides] for sides in zip(*found, strict=True)
        )
        return cls(
            np.concatenate([positions for positions, _ in tops]),
            np.concatenate([positions for positions, _ in bottoms]),
            (torch.cat([bound for _, bound in tops]), torch.cat([bound for _, bound in bottoms])),
        )


def rescored(
    walk: CheckpointPass,
    train: Examples,
    queries: Examples,
    candidates: Candidates,
    k: int,
    memory: int,
    batch_size: Size | None,
    progress: bool | None,
) -> tuple[TopInfluences, TopInfluences]:
    """The k strongest candidates of each side by their exact scores.

    Args:
        walk: The model with its weighted checkpoints.
        train: All training examples.
        queries: The queries.
        candidates: The rows to score.
        k: The number of results per query and side.
        memory: As for `exact_scores`, like those that follow.
        batch_size: Examples or tokens per model call; None finds the size.
        progress: None shows a bar on a terminal or in a notebook.

    Returns:
        Proponents and opponents.
    """
    # A candidate of both sides is visited once. Of equal scores the first position comes first.
    sides = [np.sort(one, 1) for one in (candidates.proponents, candidates.opponents)]
    both = np.concatenate(sides, 1)
    scores, facts = exact_scores(
        walk, train, queries, both.clip(min=0), memory, batch_size, progress
    )
    half = sides[0].shape[1]
    halves = slice(None, half), slice(half, None)
    bounds = candidates.bounds or (None, None)
    proponents, opponents = (
        _best(
            train.ids,
            chosen,
            scores[:, here],
            k,
            sign,
            bound,
            None if facts is None else facts.at((slice(None), here)),
        )
        for chosen, here, sign, bound in zip(sides, halves, (1, -1), bounds, strict=True)
    )
    return proponents, opponents


@settled
def strongest_of_all(
    walk: CheckpointPass,
    train: Examples,
    queries: Examples,
    k: int,
    memory: int,
    batch_size: Size | None,
    progress: bool | None,
) -> tuple[TopInfluences, TopInfluences]:
    """The k strongest of all training examples on each side, by the model: a pass over them all.

    Args:
        walk: The model with its weighted checkpoints.
        train: All training examples.
        queries: A few, whose gradients are kept together.
        k: Results per query and side.
        memory: Bytes that scores may take, about.
        batch_size: Examples or tokens per model call; None finds the size.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        NonFiniteError: A loss or gradient is NaN or infinite.
    """
    ranking = Ranking(train.ids, k, None, drop_misclassified=False)
    step = max(k, memory // (4 * walk.checkpoints * len(queries)))
    for start in range(0, len(train), step):
        block = range(start, min(start + step, len(train)))
        ranking.open(block, len(queries), walk.checkpoints, torch.float32)
        request = ScoreRequest(queries, range(len(queries)))
        for each in walk.steps(
            train, block, request, batch_size, progress, "scoring all rows", fitted_on=train
        ):
            ranking.take(each, 1.0)
        ranking.close()
    return ranking.proponents(), ranking.opponents()


def _best(
    ids: np.ndarray,
    candidates: np.ndarray,
    scores: Tensor,
    k: int,
    sign: int,
    bound: Tensor | None,
    facts: ExampleFacts | None,
) -> TopInfluences:
    totals = scores.sum(2)
    ranked = (sign * totals).masked_fill(torch.from_numpy(candidates < 0), -torch.inf)
    order = top_k(ranked, k).places
    positions = np.take_along_axis(candidates, order.numpy(), 1)
    best = totals.gather(1, order)
    shares = scores.gather(1, order[:, :, None].expand(-1, -1, scores.shape[2]))
    sure = None if bound is None else sign * best > (sign * bound)[:, None]
    if facts is not None:
        facts = facts.at((torch.arange(len(order))[:, None], order))
    return TopInfluences(
        ids[positions], positions, best, shares, bounds=bound, sure=sure, facts=facts
    )


def _cut(side: "Strongest", count: int, is_sure: bool) -> tuple[np.ndarray, Tensor]:
    """The first `count` of each query, [queries, count], and the bound of all others, [queries]."""
    if side.values is None:
        raise RuntimeError("no rows were read")
    no_others = torch.full((len(side.values),), -side.sign * torch.inf)
    if side.values.shape[1] <= count:
        return side.positions[:, :count].numpy(), no_others
    bound = side.values[:, count]
    if not is_sure:
        bound = torch.where(bound == no_others, bound, -no_others)
    return side.positions[:, :count].numpy(), bound
