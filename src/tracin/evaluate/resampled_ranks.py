"""Rank correlations on many resamples, without sorting each again.

A resample is a number of times per subset. The rank of a value in it is how often smaller values
were drawn, and half of how often equal ones were: running sums over one sorted list.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

HELD = 1 << 19  # numbers of one block of resamples


@final
@dataclass(frozen=True, eq=False)
class Sorted:
    """Values of each query over subsets, in order.

    Attributes:
        order: [subsets, queries]; the subsets by increasing value.
        below: [subsets, queries]; how many values are smaller than each subset's.
        up_to: [subsets, queries]; how many are not larger.
    """

    order: Tensor
    below: Tensor
    up_to: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Sorted":
        """Sort the values of each query: [subsets, queries]."""
        in_order, order = (each.contiguous() for each in values.T.sort(dim=1))  # [queries, subsets]
        given = values.T.contiguous()
        below = torch.searchsorted(in_order, given)
        up_to = torch.searchsorted(in_order, given, right=True)
        return cls(order.T, below.T, up_to.T)

    def ranks(self, counts: Tensor) -> Tensor:
        """Ranks from 0, around their mean, of the subsets where each is drawn some times.

        Args:
            counts: [resamples, subsets].

        Returns:
            [resamples, subsets, queries].
        """
        running = counts[:, self.order].cumsum(1)  # [resamples, subsets, queries]
        running = torch.cat([torch.zeros_like(running[:, :1]), running], 1)
        shape = len(counts), -1, -1
        sums = (running.gather(1, each.expand(shape)) for each in (self.below, self.up_to))
        return (sum(sums) - counts.sum(1)[:, None, None]) / 2


@final
@dataclass(frozen=True, eq=False)
class Resamples:
    """Resamples of subsets and queries, both with replacement.

    Attributes:
        subsets: [resamples, subsets]; how often each was drawn.
        queries: [resamples, queries]; how often each was drawn.
    """

    subsets: Tensor
    queries: Tensor

    @classmethod
    def of(cls, subsets: int, queries: int, resamples: int, seed: int) -> "Resamples":
        """Draw as many subsets as there are, and as many queries, some times over."""
        generator = torch.Generator().manual_seed(seed)
        return cls(*(_counts(many, resamples, generator) for many in (subsets, queries)))

    def mean_correlations(self, ours: Sorted, theirs: Sorted) -> Tensor:
        """The mean over queries of the rank correlation, under each resample: [resamples].

        A query whose values are all the same in a resample counts as 0.
        """
        return torch.cat(list(self._blocks(ours, theirs)))

    def _blocks(self, ours: Sorted, theirs: Sorted) -> Iterator[Tensor]:
        step = max(1, HELD // ours.order.numel())
        for counts, weights in zip(self.subsets.split(step), self.queries.split(step), strict=True):
            one, other = ours.ranks(counts), theirs.ranks(counts)
            times = counts[:, :, None]
            product = (times * one * other).sum(1)
            lengths = (times * one * one).sum(1).sqrt() * (times * other * other).sum(1).sqrt()
            each = torch.where(lengths > 0, product / lengths, 0.0)  # [resamples, queries]
            yield (each * weights).sum(1) / weights.sum(1)


def _counts(many: int, resamples: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(many, (resamples, many), generator=generator)
    counts = torch.zeros(resamples, many, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))
