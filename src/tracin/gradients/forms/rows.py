"""A table's gradient as rows: an embedding's gradient touches only the rows that were looked up."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.form import Form, blocks


@final
@dataclass(frozen=True, eq=False)
class Rows(Form):
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

    def part(self, start: int, stop: int) -> "Rows":
        return Rows(self.index[start:stop], self.values[start:stop], self.size)

    def dense(self) -> Tensor:
        width = self.values.shape[2]
        out = self.values.new_zeros(self.examples, self.size, width)
        out.scatter_add_(1, self.index.unsqueeze(2).expand(-1, -1, width), self.values)
        return out.flatten(1)

    def squared_norm(self) -> Tensor:
        positions = self.index.shape[1]
        norms = []
        for at in blocks(self.examples, positions**2, self.device):
            form = self.part(*at)
            products = torch.bmm(form.values, form.values.mT)
            meet = form.index.unsqueeze(2) == form.index.unsqueeze(1)
            norms.append((products * meet).sum((1, 2)))
        return torch.cat(norms)
