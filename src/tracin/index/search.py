"""Scores the rows of an index block by block, and keeps the strongest of each query."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.index.row_scan import RowScan, SketchedQueries
from tracin.index.store import Shard
from tracin.index.strongest import Strongest
from tracin.results.explanations import TopInfluences
from tracin.sketches import standard_error

# Rows decoded at once: few enough to stay in the cache, enough to outweigh the calls per block.
BLOCK_ROWS = 1024
# Copies of a block of scores that exist while it is ranked.
RANKING_COPIES = 4


@final
@dataclass(frozen=True)
class Scores:
    """Scores of some rows.

    Attributes:
        first: The position of the first row.
        scores: [checkpoints, queries, rows]: each query's lie together, to be ranked.
    """

    first: int
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

    def to_influences(self, ids: np.ndarray) -> TopInfluences:
        """With the rows' ids."""
        return TopInfluences(
            ids[self.positions], self.positions, self.scores, self.by_checkpoint, self.errors
        )


def scored(scan: RowScan, ranges: Sequence[range] | None = None) -> Iterator[Scores]:
    """The scores of the rows of some ranges of the manifest's, a block at a time; None for all."""
    queries = scan.queries
    each = 4 * RANKING_COPIES * len(queries) * len(queries.keys)
    for block in scan.blocks(each, BLOCK_ROWS, ranges):
        scores = torch.empty(len(block.shards), len(queries), len(block))
        for at, shard in enumerate(block.shards):
            for here, rows in block.nearer(BLOCK_ROWS):
                scores[at, :, here] = _near_scores(scan, at, shard, rows).T
        if scan.scale is not None:
            scores *= scan.scale.of(block.first, len(block))
        yield Scores(block.first, scores)


def _near_scores(scan: RowScan, at: int, shard: Shard, rows: range) -> Tensor:
    """A function of its own, so that one block's rows are gone before the next is decoded."""
    kept, scales = shard.unscaled(rows.start, rows.stop)
    queries = scan.queries
    scores = scan.plan.columns.scores(kept, queries.rows[at], queries.weights[at], scales)
    shard.refuse_non_finite(scores)
    return scores


def scores_of(scan: RowScan) -> Tensor:
    """All scores: [train, queries]."""
    scan.store.refuse_missing()
    total = torch.empty(scan.store.manifest.rows, len(scan.queries))
    for block in scored(scan):
        total[block.first : block.first + block.scores.shape[2]] = block.scores.sum(0).T
    return total


@final
class Search:
    """The running top and bottom k of some queries.

    Args:
        scan: The rows, and the queries.
        k: Results per query and side.
    """

    def __init__(self, scan: RowScan, k: int) -> None:
        self._scan, self._k = scan, k

    @staticmethod
    def smallest(queries: SketchedQueries) -> int:
        """Bytes of one query in the smallest block."""
        return 4 * BLOCK_ROWS * RANKING_COPIES * len(queries.keys)

    def found(self) -> list[Best]:
        """Proponents, scores descending, and opponents, scores ascending."""
        return best(self._scan, self.strongest())

    def strongest(self, ranges: Sequence[range] | None = None) -> tuple[Strongest, Strongest]:
        """The k highest and the k lowest scores among the rows of some ranges; None for all."""
        top, bottom = Strongest(self._k, 1), Strongest(self._k, -1)
        for block in scored(self._scan, ranges):
            totals = block.scores.sum(0)
            keep = self._scan.kept(block.first, totals.shape[1])
            for side in (top, bottom):
                side.take(block.first, totals, keep, block.scores)
        return top, bottom


def best(scan: RowScan, sides: Sequence[Strongest]) -> list[Best]:
    """Finished sides, with the errors of their scores; a row of both is decoded once."""
    errors = errors_of(scan, torch.cat([side.positions for side in sides], 1))
    found: list[Best] = []
    each = errors.split([side.positions.shape[1] for side in sides], 1)
    for side, own in zip(sides, each, strict=True):
        if side.values is None or side.shares is None:
            raise RuntimeError("no rows were read")
        found.append(Best(side.positions.numpy(), side.values, side.shares, own))
    return found


def errors_of(scan: RowScan, positions: Tensor) -> Tensor:
    """One standard deviation of each result's score: checkpoints' errors are independent.

    Args:
        scan: The rows, and the queries.
        positions: [queries, k].
    """
    scan = scan.merged()
    queries, plan = scan.queries, scan.plan
    found = torch.empty(positions.shape)
    each = 4 * max(1, positions.shape[1]) * 3 * plan.width
    for part, some in scan.parts(each):
        here = positions[part]
        unique, places = here.unique(return_inverse=True)
        variance = torch.zeros(here.shape)
        for at, key in enumerate(queries.keys):
            # Each query with its own results only: [queries, k, width] with [queries, 1, width].
            rows = scan.store.rows_at(key, unique)[places]
            query_rows = some.queries.rows[at].unsqueeze(1)
            errors = standard_error(plan.columns, rows, query_rows, some.queries.weights[at])
            variance += errors.squeeze(2).square()
        found[part] = variance.sqrt()
    return found if scan.scale is None else found * scan.scale.at(positions)
