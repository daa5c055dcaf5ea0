"""What exact scores are expected to lie between: who is a candidate, and who else may count."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.influence.index_search import Asked, rows_within
from tracin.influence.index_strongest import Strongest
from tracin.influence.index_table import sketched_squared_norms
from tracin.influence.progress import bar
from tracin.sketches import Plan, standard_error
from tracin.sketches.columns import Columns, Product, Side
from tracin.store import Shard, Store, number_format

# Rows at once: more than a search's, since there is more to do with each, and less to read.
NEAR = 2048
# Standard errors that an estimate is expected to be off by, at the most.
Z = 3.0
# Columns below which Z means little: errors are then a few collisions of large numbers, far from
# normal. Of 16 columns one score in thirty was beyond it, and answers of 33 were called certain
# that were not.
NARROW = 64
# Of the lengths' product: what the sums of single precision may come out larger.
SLACK = 1e-5
# Numbers held of each row and query, for a moment.
HELD = 12


@final
@dataclass(frozen=True)
class Limits:
    """What some rows' exact scores are expected to lie between.

    Attributes:
        start: The first row.
        scores: [rows, queries]: the estimates.
        lower: [rows, queries].
        upper: [rows, queries].
    """

    start: int
    scores: Tensor
    lower: Tensor
    upper: Tensor


@final
class LimitSearch:
    """The rows with the highest upper limits, and with the lowest lower ones.

    Args:
        store: The rows.
        plan: How they are laid out.
        asked: The queries, with the squared lengths of their gradients.
        k: How many of each.
        keep: [rows], bool: which may be found; None for all.
        memory: Bytes that a block may take.
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
        return 4 * NEAR * HELD

    def strongest(self, ranges: Sequence[range] | None = None) -> tuple[Strongest, Strongest]:
        """Those among the rows of some ranges; None for all."""
        top, bottom, _, _ = self.with_estimates(0, ranges)
        return top, bottom

    def with_estimates(
        self, k: int, ranges: Sequence[range] | None = None
    ) -> tuple[Strongest, Strongest, Strongest, Strongest]:
        """Those, and the k with the highest and with the lowest estimates, of one reading."""
        top, bottom = Strongest(self._k, 1), Strongest(self._k, -1)
        high, low = Strongest(k, 1), Strongest(k, -1)
        for block in limits(
            self._store, self._plan, self._asked, self._memory, self._progress, ranges
        ):
            keep = None
            if self._keep is not None:
                keep = self._keep[block.start : block.start + len(block.upper)]
            top.take(block.start, block.upper.T, keep, None)
            bottom.take(block.start, block.lower.T, keep, None)
            for side in (high, low) if k else ():
                side.take(block.start, block.scores.T, keep, None)
        return top, bottom, high, low


def limits(
    store: Store,
    plan: Plan,
    asked: Asked,
    memory: int,
    progress: bool | None,
    ranges: Sequence[range] | None = None,
) -> Iterator[Limits]:
    """The limits of the rows' scores, a block of about `memory` bytes at a time.

    The estimate and Z standard errors to each side, but never beyond the product of the gradients'
    lengths, which no score exceeds.
    """
    ranges = store.manifest.ranges() if ranges is None else ranges
    rounding = _rounding(store)
    short = [
        lacking(of_queries, sketched_squared_norms(plan.columns, rows))
        for of_queries, rows in zip(asked.squared_norms, asked.rows, strict=True)
    ]
    step = rows_within(memory, 4 * HELD * len(asked), NEAR)
    with bar(sum(map(len, ranges)) * len(asked.keys), "search", progress, "row") as shown:
        for span in ranges:
            shards = [store.read_range(key, span) for key in asked.keys]
            for start in range(0, len(span), step):
                stop = min(start + step, len(span))
                found, lower, upper = torch.empty(3, stop - start, len(asked)).unbind()
                for near in range(start, stop, NEAR):
                    end = min(near + NEAR, stop)
                    scores, variance, most = torch.zeros(3, end - near, len(asked)).unbind()
                    for at, shard in enumerate(shards):
                        rows, queries, weights = (
                            shard.rows(near, end),
                            asked.rows[at],
                            asked.weights[at],
                        )
                        norms = shard.tensors["squared_norms"][near:end]
                        lengths = products_of_lengths(norms, asked.squared_norms[at], weights)
                        scores += plan.columns.scores(rows, queries, weights)
                        spread = standard_error(plan.columns, rows, queries, weights).square()
                        variance += spread * shortfall(shard, near, end)[:, None] * short[at]
                        variance += (rounding * lengths).square()
                        most += lengths
                    margin, most = Z * variance.sqrt(), (1 + SLACK) * most
                    here = slice(near - start, end - start)
                    found[here] = scores
                    lower[here] = torch.maximum(scores - margin, -most)
                    upper[here] = torch.minimum(scores + margin, most)
                shown.update((stop - start) * len(shards))
                yield Limits(span.start + start, found, lower, upper)


def is_narrow(columns: Columns) -> bool:
    """Whether sketched gradients have so few columns that no answer is to be called certain."""
    sides: list[Side] = []
    for block in columns.blocks:
        if isinstance(block, Product):
            sides += [side for side in (block.left, block.right) if not side.is_exact]
        elif block.spread:
            sides.append(block.side)
    return 0 < sum(side.width for side in sides) < NARROW


def products_of_lengths(rows: Tensor, queries: Tensor, weights: Sequence[float]) -> Tensor:
    """The most that each row's score with each query can be: [rows, queries].

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


def shortfall(shard: Shard, start: int, stop: int) -> Tensor:
    """`lacking` of some rows of a shard."""
    found = shard.tensors
    return lacking(found["squared_norms"][start:stop], found["sketched_squared_norms"][start:stop])


def _rounding(store: Store) -> float:
    """How far kept numbers put a score off, in units of the lengths' product.

    A product of two factors has both of them rounded, hence twice the unit of one. Numbers of int8
    are rounded in units of the largest: of the length, at the worst.
    """
    dtype = number_format(store.manifest.number_format).dtype
    unit = torch.finfo(dtype).eps / 2 if dtype.is_floating_point else 2.0**-8
    return 2 * max(unit, 2.0**-20)
