"""Gradients of which each entry is multiplied by a factor that all examples share: masks, casts."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.dense import Dense
from tracin.gradients.forms.form import PerExampleGradient
from tracin.gradients.forms.outer import OuterProduct


@final
@dataclass(frozen=True, eq=False)
class ScaledEntries(PerExampleGradient):
    """Gradient i is factors x inner[i], entry by entry; what is within keeps its factors."""

    inner: PerExampleGradient
    factors: Tensor  # [numbers]

    @property
    def examples(self) -> int:
        return self.inner.examples

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def numbers(self) -> int:
        return self.inner.numbers

    @property
    def written(self) -> int:
        return self.inner.written

    def settled(self) -> Dense:
        return Dense(self.dense())

    def part(self, start: int, stop: int) -> "ScaledEntries":
        return ScaledEntries(self.inner.part(start, stop), self.factors)

    def dense(self) -> Tensor:
        rows = self.inner.dense()
        return rows * self.factors.to(rows)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        summed = self.inner.weighted_sum(weights)
        return summed * self.factors.to(summed)

    def squared_norm(self) -> Tensor:
        if isinstance(self.inner, OuterProduct) and self.inner.positions == 1:
            return self.inner.squared_norm_under(self.factors.square())
        return self.written_norm()

    def squared_norm_under(self, metric: Tensor) -> Tensor:
        factors = self.factors.square()
        return self.inner.squared_norm_under(factors * metric.to(factors))
