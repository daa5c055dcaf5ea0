"""A stack of matrices, such as one for each expert or head: outer products for each of them."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.form import PerExampleGradient
from tracin.gradients.forms.outer import OuterProduct


@final
@dataclass(frozen=True, eq=False)
class Stacked(PerExampleGradient):
    """Matrix m of gradient i is the sum over positions of left[i, m, t] (x) right[i, m, t]."""

    left: Tensor  # [examples, matrices, positions, out]
    right: Tensor  # [examples, matrices, positions, in]

    @property
    def examples(self) -> int:
        return self.left.shape[0]

    @property
    def matrices(self) -> int:
        return self.left.shape[1]

    @property
    def device(self) -> torch.device:
        return self.left.device

    @property
    def numbers(self) -> int:
        return self.matrices * self.left.shape[3] * self.right.shape[3]

    @property
    def each(self) -> list[OuterProduct]:
        """The gradients of each matrix by itself."""
        return [OuterProduct(self.left[:, m], self.right[:, m]) for m in range(self.matrices)]

    def part(self, start: int, stop: int) -> "Stacked":
        return Stacked(self.left[start:stop], self.right[start:stop])

    def dense(self) -> Tensor:
        return self._as_one().dense().view(self.examples, self.numbers)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return torch.cat([form.weighted_sum(weights) for form in self.each])

    def add_weighted_sum(self, weights: Tensor, into: Tensor) -> None:
        for form, matrix in zip(self.each, into.view(self.matrices, -1), strict=True):
            form.add_weighted_sum(weights, matrix)

    def squared_norm(self) -> Tensor:
        return self._as_one().squared_norm().view(self.examples, self.matrices).sum(1)

    def terms(self) -> Tensor | None:
        terms = self._as_one().terms()
        return None if terms is None else terms.view(self.examples, self.matrices).sum(1)

    def _as_one(self) -> OuterProduct:
        """Every matrix of every example as an example of its own."""
        return OuterProduct(self.left.flatten(0, 1), self.right.flatten(0, 1))
