"""Outer products that are multiplied written out, and held in factors all the same."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.form import PerExampleGradient
from tracin.gradients.forms.outer import OuterProduct


@final
@dataclass(frozen=True, eq=False)
class Streamed(PerExampleGradient):
    """Gradients of queries whose products need them written out, a few rows at a time.

    So do gradients whose terms cancel, of which products of factors leave rounding, and those of
    which each entry is multiplied by a factor of its own, such as Adam's.
    """

    inner: OuterProduct
    factors: Tensor | None = None  # [numbers]

    @property
    def examples(self) -> int:
        return self.inner.examples

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def numbers(self) -> int:
        return self.inner.numbers

    def part(self, start: int, stop: int) -> "Streamed":
        return Streamed(self.inner.part(start, stop), self.factors)

    def dense(self) -> Tensor:
        rows = self.inner.dense()
        return rows if self.factors is None else rows * self.factors.to(rows)

    def squared_norm(self) -> Tensor:
        return self.written_norm()
