"""A table's gradient as rows: an embedding's gradient touches only the rows that were looked up."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.form import PerExampleGradient, by_blocks


@final
@dataclass(frozen=True, eq=False)
class SparseRows(PerExampleGradient):
    """Gradient i adds values[i, t] to row index[i, t] of a [size, width] table."""

    index: Tensor  # [examples, positions], integers
    values: Tensor  # [examples, positions, width]
    size: int

    @property
    def examples(self) -> int:
        return self.index.shape[0]

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def numbers(self) -> int:
        return self.size * self.values.shape[2]

    def part(self, start: int, stop: int) -> "SparseRows":
        return SparseRows(self.index[start:stop], self.values[start:stop], self.size)

    def dense(self) -> Tensor:
        width = self.values.shape[2]
        out = self.values.new_zeros(self.examples, self.size, width)
        out.scatter_add_(1, self.index.unsqueeze(2).expand(-1, -1, width), self.values)
        return out.flatten(1)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        out = self.values.new_zeros(self.numbers)
        self.add_weighted_sum(weights, out)
        return out

    def add_weighted_sum(self, weights: Tensor, into: Tensor) -> None:
        if into.dtype != self.values.dtype:
            super().add_weighted_sum(weights, into)
            return
        values = self._weighted(weights)
        into.view(self.size, values.shape[1]).index_add_(0, self.index.flatten(), values)

    def along_weighted_sum(self, vectors: Tensor, weights: Tensor) -> Tensor:
        if vectors.shape[1] != self.size:
            return super().along_weighted_sum(vectors, weights)
        values = self._weighted(weights)
        return vectors.index_select(1, self.index.flatten()) @ values.to(vectors)

    def _weighted(self, weights: Tensor) -> Tensor:
        """The rows, multiplied by the weights: [examples x positions, width]."""
        return (self.values * weights.to(self.values).view(-1, 1, 1)).flatten(0, 1)

    def squared_norm(self) -> Tensor:
        positions = self.index.shape[1]

        def one(start: int, stop: int) -> Tensor:
            return met_products(self.part(start, stop), self.values[start:stop])

        return by_blocks(self.examples, positions**2, self.device, one)

    def terms(self) -> Tensor | None:
        if self.index.shape[1] == 1:
            return None
        return torch.linalg.vector_norm(self.values, dim=(1, 2)).square_()

    def squared_norm_under(self, metric: Tensor) -> Tensor:
        positions, width = self.values.shape[1:]

        def one(start: int, stop: int) -> Tensor:
            form = self.part(start, stop)
            return met_products(form, form.scaled(metric).values)

        return by_blocks(self.examples, positions * max(positions, width), self.device, one)

    def scaled(self, metric: Tensor) -> "SparseRows":
        """Each entry multiplied by its own factor, of which there are [numbers]."""
        factors = metric.to(self.values).view(self.size, -1)[self.index]
        return SparseRows(self.index, factors.mul_(self.values), self.size)


def met_products(form: SparseRows, values: Tensor) -> Tensor:
    """The sum over pairs of positions that hold the same row, of products with other values."""
    products = torch.bmm(form.values, values.mT)
    meet = form.index.unsqueeze(2) == form.index.unsqueeze(1)
    return (products * meet).sum((1, 2))
