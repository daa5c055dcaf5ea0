"""A matrix's gradient as a sum of outer products over positions (method: the rank-1 identity)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.form import PerExampleGradient, by_blocks, squared_lengths
from tracin.gradients.forms.summed_products import full, multiplied

# Numbers in one block of Gram matrices: small enough for a core's own cache.
GRAM = 1 << 17

# Below this many positions x (in + out) per in x out, the products of factors beat writing out.
# More than 1, since a quarter of the pairs of positions is saved by symmetry, and since writing out
# also costs the memory traffic of the matrix; measured with 128 positions.
CROSSING = 1.3


@final
@dataclass(frozen=True, eq=False)
class OuterProduct(PerExampleGradient):
    """Gradient i is the sum over positions of left[i, t] (x) right[i, t]: [out, in].

    Sides may be kept in half precision, in which a layer multiplied them.
    """

    kept_left: Tensor  # [examples, positions, out]
    kept_right: Tensor  # [examples, positions, in]

    @property
    def left(self) -> Tensor:
        """In at least float32: [examples, positions, out]."""
        return full(self.kept_left)

    @property
    def right(self) -> Tensor:
        """In at least float32: [examples, positions, in]."""
        return full(self.kept_right)

    @property
    def examples(self) -> int:
        return self.kept_left.shape[0]

    @property
    def positions(self) -> int:
        return self.kept_left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Of one example's matrix: out, in."""
        return self.kept_left.shape[2], self.kept_right.shape[2]

    @property
    def device(self) -> torch.device:
        return self.kept_left.device

    @property
    def numbers(self) -> int:
        out, inner = self.shape
        return out * inner

    @property
    def is_thin(self) -> bool:
        """Whether products of factors cost less than writing the matrices out."""
        return self.positions * sum(self.shape) < CROSSING * self.numbers

    def part(self, start: int, stop: int) -> "OuterProduct":
        return OuterProduct(self.kept_left[start:stop], self.kept_right[start:stop])

    def transposed(self) -> "OuterProduct":
        """The gradient of the transpose."""
        return OuterProduct(self.kept_right, self.kept_left)

    def dense(self) -> Tensor:
        return multiplied(self.kept_left.mT, self.kept_right).flatten(1)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        left, right = self._weighted(weights)
        return (left.mT @ right).flatten()

    def add_weighted_sum(self, weights: Tensor, into: Tensor) -> None:
        if into.dtype != self.left.dtype or into.dtype != self.right.dtype:
            super().add_weighted_sum(weights, into)
            return
        left, right = self._weighted(weights)
        into.view(left.shape[1], right.shape[1]).addmm_(left.mT, right)

    def along_weighted_sum(self, vectors: Tensor, weights: Tensor) -> Tensor:
        if vectors.shape[1] != self.shape[0]:
            return super().along_weighted_sum(vectors, weights)
        left, right = self._weighted(weights)
        return (vectors @ left.mT.to(vectors)) @ right.to(vectors)

    def _weighted(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides, [examples x positions, ..]; the narrower one is multiplied by the weights."""
        each = weights.to(self.left).view(-1, 1, 1)
        if self.left.shape[2] <= self.right.shape[2]:
            return (self.left * each).flatten(0, 1), self.right.flatten(0, 1)
        return self.left.flatten(0, 1), (self.right * each).flatten(0, 1)

    def squared_norm(self) -> Tensor:
        if self.positions == 1:
            return squared_lengths(self.left[:, 0]) * squared_lengths(self.right[:, 0])
        if self.is_thin:
            return by_blocks(
                self.examples,
                self.positions**2,
                self.device,
                lambda start, stop: _gram_norm(self.part(start, stop)),
                GRAM,
            )
        return self.written_norm()

    def terms(self) -> Tensor | None:
        if self.positions == 1 or not self.is_thin:
            return None
        left, right = (torch.linalg.vector_norm(side, dim=2) for side in (self.left, self.right))
        return left.mul_(right).square_().sum(1)

    def squared_norm_under(self, metric: Tensor) -> Tensor:
        if self.positions > 1:
            return super().squared_norm_under(metric)
        # One outer product: its squared entries are an outer product, too.
        left, right = self.left[:, 0].square(), self.right[:, 0].square()
        return torch.linalg.vecdot(left @ metric.to(left).view(left.shape[1], -1), right)


def _gram_norm(form: OuterProduct) -> Tensor:
    """The sum over pairs of positions; a pair counts both ways, so a quarter need not be made."""
    half = form.positions // 2
    left, right = form.kept_left, form.kept_right
    first = OuterProduct(left[:, :half], right[:, :half])
    second = OuterProduct(left[:, half:], right[:, half:])
    return _gram(first, first) + _gram(second, second) + 2 * _gram(first, second)


def _gram(form: OuterProduct, other: OuterProduct) -> Tensor:
    lefts = multiplied(form.kept_left, other.kept_left.mT)
    rights = multiplied(form.kept_right, other.kept_right.mT)
    return torch.linalg.vecdot(lefts.flatten(1), rights.flatten(1))
