"""Reads an index's rows block by block, and keeps the strongest of each query."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.influence.explanations import Hits
from tracin.influence.progress import bar
from tracin.sketches import Plan, standard_error
from tracin.store import Shard, Store

# Rows that are decoded at once: few enough to stay in a core's own cache.
NEAR = 512


@final
@dataclass(frozen=True)
class Asked:
    """Queries, sketched.

    Attributes:
        keys: The checkpoints that count.
        numbers: Their places in the run.
        rows: [queries, width] at each of them.
        weights: [groups] at each of them.
    """

    keys: tuple[str, ...]
    numbers: tuple[int, ...]
    rows: tuple[Tensor, ...]
    weights: tuple[list[float], ...]

    def __len__(self) -> int:
        return len(self.rows[0])


@final
@dataclass(frozen=True)
class Block:
    """Scores of some rows.

    Attributes:
        start: The first row.
        scores: [checkpoints, rows, queries].
    """

    start: int
    scores: Tensor


@final
@dataclass(frozen=True)
class Best:
    """The strongest on one side.

    Attributes:
        positions: [queries, k].
        scores: [queries, k].
        by_checkpoint: [queries, k, checkpoints].
        errors: [queries, k]: one standard deviation of each score over the index's random numbers.
    """

    positions: np.ndarray
    scores: Tensor
    by_checkpoint: Tensor
    errors: Tensor

    def to_hits(self, ids: np.ndarray) -> Hits:
        """With the rows' ids."""
        return Hits(
            ids[self.positions], self.positions, self.scores, self.by_checkpoint, self.errors
        )


def blocks(
    store: Store, plan: Plan, asked: Asked, memory: int, progress: bool | None
) -> Iterator[Block]:
    """All rows' scores, a block at a time; of at most about `memory` bytes."""
    manifest = store.manifest
    each = 4 * len(asked) * len(asked.keys)
    step = max(NEAR, memory // each // NEAR * NEAR)
    with bar(manifest.rows * len(asked.keys), "search", progress, "row") as shown:
        for span in manifest.ranges():
            shards = [store.read_range(key, span) for key in asked.keys]
            for start in range(0, len(span), step):
                stop = min(start + step, len(span))
                scores = torch.empty(len(shards), stop - start, len(asked))
                for at, shard in enumerate(shards):
                    queries, weights = asked.rows[at], asked.weights[at]
                    score(plan, shard, start, stop, queries, weights, scores[at])
                    shown.update(stop - start)
                yield Block(span.start + start, scores)


def score(
    plan: Plan,
    shard: Shard,
    start: int,
    stop: int,
    queries: Tensor,
    weights: list[float],
    out: Tensor,
) -> None:
    """The scores of rows `start` to `stop` of a shard, into [stop - start, queries]."""
    for near in range(start, stop, NEAR):
        end = min(near + NEAR, stop)
        out[near - start : end - start] = plan.columns.scores(
            shard.rows(near, end), queries, weights
        )


def scores_of(store: Store, plan: Plan, asked: Asked, memory: int, progress: bool | None) -> Tensor:
    """All scores: [train, queries]."""
    total = torch.empty(store.manifest.rows, len(asked))
    for block in blocks(store, plan, asked, memory, progress):
        total[block.start : block.start + block.scores.shape[1]] = block.scores.sum(0)
    return total


@final
class Search:
    """The running top and bottom k of some queries.

    Args:
        store: The rows.
        plan: How they are laid out.
        asked: The queries.
        k: How many of each.
        keep: [rows], bool: which may be found; None for all.
        memory: Bytes that a block of scores may take.
        progress: None shows a bar on a terminal alone.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        asked: Asked,
        k: int,
        keep: Tensor | None,
        memory: int,
        progress: bool | None,
    ) -> None:
        self._store, self._plan, self._asked = store, plan, asked
        self._k, self._keep = k, keep
        self._memory, self._progress = memory, progress
        self._best: list[tuple[Tensor, Tensor, Tensor] | None] = [None, None]

    def found(self) -> list[Best]:
        """Proponents, scores descending, and opponents, scores ascending."""
        for block in blocks(self._store, self._plan, self._asked, self._memory, self._progress):
            self._take(block)
        sides = []
        for best in self._best:
            if best is None:
                raise RuntimeError("no rows were read")
            scores, positions, shares = best
            sides.append(Best(positions.numpy(), scores, shares, self._errors(positions)))
        return sides

    def _take(self, block: Block) -> None:
        totals = block.scores.sum(0).T  # [queries, rows]
        rows = totals.shape[1]
        for side, sign in enumerate((1, -1)):
            ranked = sign * totals
            if self._keep is not None:
                left = self._keep[block.start : block.start + rows]
                ranked = ranked.masked_fill(~left, -torch.inf)
            values, chosen = strongest(ranked, min(self._k, rows), self._floor(side))
            if chosen.shape[1] == 0:
                continue
            queries = torch.arange(len(chosen))[:, None]
            shares = block.scores[:, chosen, queries].permute(1, 2, 0)
            self._merge(side, sign, values, chosen + block.start, shares)

    def _floor(self, side: int) -> Tensor | None:
        """What a score must exceed to come in, where k are held already: [queries]."""
        best = self._best[side]
        if best is None or best[0].shape[1] < self._k:
            return None
        last = best[0][:, -1]
        return last if side == 0 else -last

    def _merge(
        self, side: int, sign: int, values: Tensor, positions: Tensor, shares: Tensor
    ) -> None:
        found = sign * values, positions, shares
        before = self._best[side]
        if before is not None:
            found = tuple(torch.cat(pair, 1) for pair in zip(before, found, strict=True))
        scores, positions, shares = found
        # Stable twice over: of equal scores the first position comes first.
        by_position = positions.argsort(dim=1, stable=True)
        order = (sign * scores).gather(1, by_position).argsort(dim=1, descending=True, stable=True)
        order = by_position.gather(1, order)[:, : self._k]
        self._best[side] = (
            scores.gather(1, order),
            positions.gather(1, order),
            shares.gather(1, order[:, :, None].expand(-1, -1, shares.shape[2])),
        )

    def _errors(self, positions: Tensor) -> Tensor:
        """One standard deviation of each hit's score: checkpoints' errors are independent."""
        variance = torch.zeros(positions.shape)
        columns, asked = self._plan.columns, self._asked
        unique, places = positions.unique(return_inverse=True)
        queries = torch.arange(len(positions))[:, None].expand_as(positions)
        for at, key in enumerate(asked.keys):
            rows = self._store.rows_at(key, unique)
            errors = standard_error(columns, rows, asked.rows[at], asked.weights[at])
            variance += errors[places, queries].square()
        return variance.sqrt()


def strongest(ranked: Tensor, k: int, floor: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k highest of each query, [queries, k] values and places; lower places first of equals.

    Args:
        ranked: [queries, rows].
        k: How many.
        floor: [queries]: values up to it are of no use; None for all.
    """
    if floor is not None and not bool((ranked.amax(1) > floor).any()):
        return ranked[:, :0], torch.empty(len(ranked), 0, dtype=torch.int64)
    values, places = ranked.topk(k, dim=1)
    # topk picks any of several equal values at its edge: take the first of them.
    edge = values[:, -1:]
    if bool(((ranked == edge).sum(1) > (values == edge).sum(1)).any()):
        places = ranked.argsort(dim=1, descending=True, stable=True)[:, :k]
        values = ranked.gather(1, places)
    return values, places
