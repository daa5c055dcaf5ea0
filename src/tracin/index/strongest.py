"""The strongest rows of each query so far, while blocks of scores stream by."""

from typing import final

import torch
from torch import Tensor

from tracin.scoring.top_k import Top, top_k


@final
class Strongest:
    """The running k rows of each query with the highest values, or with the lowest.

    Of equal values the first position comes first, whatever the blocks and their order.

    Attributes:
        k: How many of each query.
        sign: 1 for the highest, -1 for the lowest.
        values: [queries, up to k], the strongest first.
        positions: [queries, up to k].
        shares: [queries, up to k, checkpoints]; None where they are not kept.
    """

    def __init__(self, k: int, sign: int) -> None:
        self.k, self.sign = k, sign
        self.values: Tensor | None = None
        self.positions = torch.empty(0, 0, dtype=torch.int64)
        self.shares: Tensor | None = None

    def take(self, start: int, values: Tensor, keep: Tensor | None, scores: Tensor | None) -> None:
        """Take a block in.

        Args:
            start: The position of its first row.
            values: [queries, rows]: what the rows are ranked by.
            keep: [rows], bool: which of them may be among the strongest; None for all.
            scores: [checkpoints, queries, rows], whose shares are kept; None to keep none.
        """
        rows = values.shape[1]
        ranked = self.sign * values
        if keep is not None:
            ranked = ranked.masked_fill(~keep, -torch.inf)
        found, chosen = highest(ranked, min(self.k, rows), self._floor())
        if chosen.shape[1] == 0:
            return
        shares = None
        if scores is not None:
            queries = torch.arange(len(chosen))[:, None]
            shares = scores[:, queries, chosen].permute(1, 2, 0)
        self.merge(self.sign * found, chosen + start, shares)

    def merge(self, values: Tensor, positions: Tensor, shares: Tensor | None) -> None:
        """Take in others' strongest: as the attributes are."""
        if self.values is not None:
            values = torch.cat((self.values, values), 1)
            positions = torch.cat((self.positions, positions), 1)
            if self.shares is not None and shares is not None:
                shares = torch.cat((self.shares, shares), 1)
        order = top_k(values, self.k, positions=positions, largest=self.sign > 0).places
        self.values, self.positions = values.gather(1, order), positions.gather(1, order)
        if shares is not None:
            self.shares = shares.gather(1, order[:, :, None].expand(-1, -1, shares.shape[2]))

    def _floor(self) -> Tensor | None:
        """What a ranked value must exceed to come in, where k are held already: [queries]."""
        if self.values is None or self.values.shape[1] < self.k:
            return None
        return self.sign * self.values[:, -1]


def highest(ranked: Tensor, k: int, floor: Tensor | None) -> Top:
    """The k highest of each query, [queries, k] values and places; lower places first of equals.

    Args:
        ranked: [queries, rows].
        k: How many.
        floor: [queries]: values up to it are of no use; None for all.
    """
    # Not "none is above": NaN is neither, and must come to where it is refused.
    if floor is not None and bool((ranked.amax(1) <= floor).all()):
        return Top(ranked[:, :0], torch.empty(len(ranked), 0, dtype=torch.int64))
    return top_k(ranked, k)
