"""One matrix of a stack, such as one expert of many: the others have no gradient here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.form import PerExampleGradient
from tracin.gradients.forms.outer import OuterProduct
from tracin.gradients.forms.stacked import Stacked


@final
@dataclass(frozen=True, eq=False)
class Slot(PerExampleGradient):
    """Matrix `place` of a stack of so many has these outer products as its gradient."""

    inner: OuterProduct
    place: int
    matrices: int

    @property
    def examples(self) -> int:
        return self.inner.examples

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def numbers(self) -> int:
        return self.matrices * self.inner.numbers

    def part(self, start: int, stop: int) -> "Slot":
        return replace(self, inner=self.inner.part(start, stop))

    def dense(self) -> Tensor:
        return stacked([self]).dense()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return stacked([self]).weighted_sum(weights)

    def squared_norm(self) -> Tensor:
        return self.inner.squared_norm()

    def terms(self) -> Tensor | None:
        return self.inner.terms()

    def written_norm(self) -> Tensor:
        return self.inner.written_norm()


def stacked(slots: Sequence[Slot]) -> Stacked:
    """The sum of such gradients of one stack: positions side by side, as many for each matrix."""
    matrices = slots[0].matrices
    of_each: list[list[OuterProduct]] = [[] for _ in range(matrices)]
    for slot in slots:
        of_each[slot.place].append(slot.inner)
    most = max(sum(each.positions for each in outers) for outers in of_each)

    def side(name: str) -> Tensor:
        first: Tensor = getattr(slots[0].inner, name)
        out = first.new_zeros(first.shape[0], matrices, most, first.shape[2])
        for place, outers in enumerate(of_each):
            if outers:
                each = torch.cat([getattr(outer, name) for outer in outers], 1)
                out[:, place, : each.shape[1]] = each
        return out

    return Stacked(side("left"), side("right"))
