"""Reads an index's rows block by block, and keeps the strongest of each query."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.influence.explanations import Hits
from tracin.influence.index_strongest import Strongest
from tracin.influence.progress import bar
from tracin.sketches import Plan, standard_error
from tracin.store import Shard, Store

# Rows that are decoded at once: few enough to stay in a processor's cache, and enough to make up
# for the calls that a block takes.
NEAR = 1024
# Copies of a block of scores that ranking it makes.
COPIES = 4


@final
@dataclass(frozen=True)
class Asked:
    """Queries, sketched.

    Attributes:
        keys: The checkpoints that count.
        numbers: Their places in the run.
        rows: [queries, width] at each of them.
        weights: [groups] at each of them.
        squared_norms: [queries, groups] at each of them: the exact squared lengths of the queries'
            gradients. Empty where nobody needs them.
    """

    keys: tuple[str, ...]
    numbers: tuple[int, ...]
    rows: tuple[Tensor, ...]
    weights: tuple[list[float], ...]
    squared_norms: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.rows[0])

    def some(self, which: slice | Tensor) -> "Asked":
        """Some of the queries."""
        return Asked(
            self.keys,
            self.numbers,
            tuple(one[which] for one in self.rows),
            self.weights,
            tuple(one[which] for one in self.squared_norms),
        )

    def within(self, memory: int, each: int) -> list["Asked"]:
        """The queries in parts, so that `each` bytes of every query of a part are in `memory`."""
        step = max(1, memory // each)
        return [self.some(slice(at, at + step)) for at in range(0, len(self), step)]


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

    @classmethod
    def joined(cls, parts: Sequence["Best"]) -> "Best":
        """Those of several parts of the queries."""
        return cls(
            np.concatenate([one.positions for one in parts]),
            torch.cat([one.scores for one in parts]),
            torch.cat([one.by_checkpoint for one in parts]),
            torch.cat([one.errors for one in parts]),
        )

    def to_hits(self, ids: np.ndarray) -> Hits:
        """With the rows' ids."""
        return Hits(
            ids[self.positions], self.positions, self.scores, self.by_checkpoint, self.errors
        )


def blocks(
    store: Store,
    plan: Plan,
    asked: Asked,
    memory: int,
    progress: bool | None,
    ranges: Sequence[range] | None = None,
) -> Iterator[Block]:
    """The rows' scores, a block at a time; of at most about `memory` bytes.

    Args:
        store: The rows.
        plan: How they are laid out.
        asked: The queries.
        memory: Bytes that a block may take.
        progress: None shows a bar on a terminal alone.
        ranges: Some of the manifest's ranges of rows; None for all.
    """
    ranges = store.manifest.ranges() if ranges is None else ranges
    step = rows_within(memory, 4 * COPIES * len(asked) * len(asked.keys), NEAR)
    with bar(sum(map(len, ranges)) * len(asked.keys), "search", progress, "row") as shown:
        for span in ranges:
            shards = [store.read_range(key, span) for key in asked.keys]
            for start in range(0, len(span), step):
                stop = min(start + step, len(span))
                scores = torch.empty(len(shards), stop - start, len(asked))
                for at, shard in enumerate(shards):
                    queries, weights = asked.rows[at], asked.weights[at]
                    score(plan, shard, start, stop, queries, weights, scores[at])
                    shown.update(stop - start)
                yield Block(span.start + start, scores)


def rows_within(memory: int, each: int, near: int) -> int:
    """How many rows of `each` bytes a block has: whole small blocks of `near`, one at least."""
    return max(near, memory // each // near * near)


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
        found = _near_scores(plan, shard, near, end, queries, weights)
        out[near - start : end - start] = found


def _near_scores(
    plan: Plan, shard: Shard, start: int, stop: int, queries: Tensor, weights: list[float]
) -> Tensor:
    """A function of its own, so that one block's rows are gone before the next is decoded."""
    rows, scales = shard.unscaled(start, stop)
    return plan.columns.scores(rows, queries, weights, scales)


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

    @staticmethod
    def smallest(asked: Asked) -> int:
        """Bytes of one query in the smallest block."""
        return 4 * NEAR * COPIES * len(asked.keys)

    def found(self) -> list[Best]:
        """Proponents, scores descending, and opponents, scores ascending."""
        sides = self.strongest()
        return [best(self._store, self._plan, self._asked, side, self._memory) for side in sides]

    def strongest(self, ranges: Sequence[range] | None = None) -> tuple[Strongest, Strongest]:
        """The k highest and the k lowest scores among the rows of some ranges; None for all."""
        top, bottom = Strongest(self._k, 1), Strongest(self._k, -1)
        for block in blocks(
            self._store, self._plan, self._asked, self._memory, self._progress, ranges
        ):
            totals = block.scores.sum(0).T  # [queries, rows]
            keep = None
            if self._keep is not None:
                keep = self._keep[block.start : block.start + totals.shape[1]]
            for side in (top, bottom):
                side.take(block.start, totals, keep, block.scores)
        return top, bottom


def best(store: Store, plan: Plan, asked: Asked, side: Strongest, memory: int) -> Best:
    """A finished side, with the errors of its scores."""
    if side.values is None or side.shares is None:
        raise RuntimeError("no rows were read")
    errors = errors_of(store, plan, asked, side.positions, memory)
    return Best(side.positions.numpy(), side.values, side.shares, errors)


def errors_of(store: Store, plan: Plan, asked: Asked, positions: Tensor, memory: int) -> Tensor:
    """One standard deviation of each hit's score: checkpoints' errors are independent.

    Args:
        store: The rows.
        plan: How they are laid out.
        asked: The queries.
        positions: [queries, k].
        memory: Bytes that rows, and their errors, may take.
    """
    found = torch.empty(positions.shape)
    step = max(1, memory // (4 * max(1, positions.shape[1]) * (2 * plan.width + 4 * len(asked))))
    for start in range(0, len(positions), step):
        part = slice(start, start + step)
        some, here = asked.some(part), positions[part]
        unique, places = here.unique(return_inverse=True)
        queries = torch.arange(len(here))[:, None].expand_as(here)
        variance = torch.zeros(here.shape)
        for at, key in enumerate(asked.keys):
            rows = store.rows_at(key, unique)
            errors = standard_error(plan.columns, rows, some.rows[at], some.weights[at])
            variance += errors[places, queries].square()
        found[part] = variance.sqrt()
    return found
