"""Bounds of exact scores: they choose candidates, and say whether a row was missed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.index.row_scan import RowScan, SketchedQueries
from tracin.index.store import Shard, Store, number_format
from tracin.index.strongest import Strongest
from tracin.index.table import sketched_squared_norms
from tracin.sketches import standard_error
from tracin.sketches.columns import Columns, Product, Side

# Rows per block: more than in a search, since each takes more computing and less reading.
BLOCK_ROWS = 2048
# The largest error that an estimate is expected to have, in standard errors.
STANDARD_ERRORS = 3.0
# Columns below which that means little: errors are then a few collisions of large numbers, far from
# normal. Of 16 columns one score in thirty was beyond it, and results of 33 were called certain
# that were not.
MIN_COLUMNS = 64
# How much float32 sums may exceed the product of norms, relative to it.
ROUNDING_SLACK = 1e-5
# Numbers in memory per row and query, for a moment.
NUMBERS_PER_PAIR = 12


@final
@dataclass(frozen=True)
class Limits:
    """The bounds that some rows' exact scores are expected to keep.

    Attributes:
        first: The position of the first row.
        scores: [queries, rows]: the estimates.
        lower: [queries, rows].
        upper: [queries, rows].
    """

    first: int
    scores: Tensor
    lower: Tensor
    upper: Tensor


@final
class LimitSearch:
    """The rows with the highest upper limits, and with the lowest lower ones.

    Args:
        scan: The rows, and the queries with the squared lengths of their gradients.
        k: Results per query and side.
    """

    def __init__(self, scan: RowScan, k: int) -> None:
        self._scan, self._k = scan, k

    @staticmethod
    def smallest(queries: SketchedQueries) -> int:
        """Bytes of one query in the smallest block."""
        return 4 * BLOCK_ROWS * NUMBERS_PER_PAIR

    def strongest(self, ranges: Sequence[range] | None = None) -> tuple[Strongest, Strongest]:
        """Those among the rows of some ranges; None for all."""
        top, bottom, _, _ = self.with_estimates(0, ranges)
        return top, bottom

    def with_estimates(
        self, k: int, ranges: Sequence[range] | None = None
    ) -> tuple[Strongest, Strongest, Strongest, Strongest]:
        """Those, and the k with the highest and with the lowest estimates, of one scan."""
        top, bottom = Strongest(self._k, 1), Strongest(self._k, -1)
        high, low = Strongest(k, 1), Strongest(k, -1)
        for block in limits(self._scan, ranges):
            keep = self._scan.kept(block.first, block.upper.shape[1])
            top.take(block.first, block.upper, keep, None)
            bottom.take(block.first, block.lower, keep, None)
            for side in (high, low) if k else ():
                side.take(block.first, block.scores, keep, None)
        return top, bottom, high, low


def limits(scan: RowScan, ranges: Sequence[range] | None = None) -> Iterator[Limits]:
    """The bounds of the rows' scores, a block at a time.

    The estimate plus and minus STANDARD_ERRORS standard errors, but never beyond the product of the
    gradients' norms, which no score exceeds.
    """
    scan = scan.merged()
    queries, columns = scan.queries, scan.plan.columns
    rounding = _rounding(scan.store)
    short = [
        lacking(of_queries, sketched_squared_norms(columns, rows))
        for of_queries, rows in zip(queries.squared_norms, queries.rows, strict=True)
    ]
    for block in scan.blocks(4 * NUMBERS_PER_PAIR * len(queries), BLOCK_ROWS, ranges):
        found, lower, upper = torch.empty(3, len(queries), len(block)).unbind()
        for here, near in block.nearer(BLOCK_ROWS):
            scores, variance, most = torch.zeros(3, len(near), len(queries)).unbind()
            for at, shard in enumerate(block.shards):
                rows = shard.rows(near.start, near.stop)
                query_rows, weights = queries.rows[at], queries.weights[at]
                norms = shard.tensors["squared_norms"][near.start : near.stop]
                lengths = products_of_lengths(norms, queries.squared_norms[at], weights)
                scores += columns.scores(rows, query_rows, weights)
                spread = standard_error(columns, rows, query_rows, weights).square()
                variance += spread * shortfall(shard, near)[:, None] * short[at]
                variance += (rounding * lengths).square()
                most += lengths
            margin, most = STANDARD_ERRORS * variance.sqrt(), (1 + ROUNDING_SLACK) * most
            found[:, here] = scores.T
            lower[:, here] = torch.maximum(scores - margin, -most).T
            upper[:, here] = torch.minimum(scores + margin, most).T
        yield Limits(block.first, found, lower, upper)


def is_narrow(columns: Columns) -> bool:
    """Whether sketches have too few columns for a result to be called certain."""
    sides: list[Side] = []
    for block in columns.blocks:
        if isinstance(block, Product):
            sides += [side for side in (block.left, block.right) if not side.is_exact]
        elif block.spread:
            sides.append(block.side)
    return 0 < sum(side.width for side in sides) < MIN_COLUMNS


def products_of_lengths(rows: Tensor, queries: Tensor, weights: Sequence[float]) -> Tensor:
    """The largest possible score of each row with each query: [rows, queries].

    Args:
        rows: [rows, groups]: squared lengths of the gradients.
        queries: [queries, groups].
        weights: [groups].
    """
    weighted = queries.float().sqrt() * torch.tensor(weights, dtype=torch.float32).abs()
    return rows.float().sqrt() @ weighted.T


def lacking(exact: Tensor, sketched: Tensor) -> Tensor:
    """How much shorter a row is than its gradient, in squares, at least 1: [rows].

    Few columns may hide most of a gradient, and then the row's own length, by which its errors are
    estimated, says too little.

    Args:
        exact: [rows, groups]: squared lengths of the gradients.
        sketched: [rows, groups]: squared lengths of the rows.
    """
    ratio = exact.float() / sketched.float().clamp(min=torch.finfo(torch.float32).tiny)
    return ratio.nan_to_num(1.0).amax(1).clamp(min=1.0)


def shortfall(shard: Shard, rows: range) -> Tensor:
    """`lacking` of some rows of a shard."""
    exact, sketched = (
        shard.tensors[name][rows.start : rows.stop]
        for name in ("squared_norms", "sketched_squared_norms")
    )
    return lacking(exact, sketched)


def _rounding(store: Store) -> float:
    """How far kept numbers put a score off, in units of the lengths' product.

    A product of two factors has both of them rounded, hence twice the unit of one. Numbers of int8
    are rounded in units of the largest: of the length, at the worst.
    """
    dtype = number_format(store.manifest.number_format).dtype
    unit = torch.finfo(dtype).eps / 2 if dtype.is_floating_point else 2.0**-8
    return 2 * max(unit, 2.0**-20)
