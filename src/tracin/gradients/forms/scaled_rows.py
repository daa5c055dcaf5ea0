"""Gradients that are one matrix for all examples, but for the lengths of its rows."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.dense import Dense
from tracin.gradients.forms.form import PerExampleGradient


@final
@dataclass(frozen=True, eq=False)
class ScaledRows(PerExampleGradient):
    """Row r of gradient i is scales[i, r] x matrix[r], as of a weight that is normalised by row."""

    scales: Tensor  # [examples, rows]
    matrix: Tensor  # [rows, width]

    @property
    def examples(self) -> int:
        return self.scales.shape[0]

    @property
    def device(self) -> torch.device:
        return self.scales.device

    @property
    def numbers(self) -> int:
        return self.matrix.numel()

    def settled(self) -> Dense:
        return Dense(self.dense())

    def part(self, start: int, stop: int) -> "ScaledRows":
        return ScaledRows(self.scales[start:stop], self.matrix)

    def dense(self) -> Tensor:
        return (self.scales.unsqueeze(2) * self.matrix).flatten(1)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        scales = weights.to(self.scales) @ self.scales
        return (scales.unsqueeze(1) * self.matrix).flatten()

    def squared_norm(self) -> Tensor:
        return self.scales.square() @ self.matrix.square().sum(1)

    def project(self, matrix: Tensor) -> Tensor:
        columns = [(each.view(self.matrix.shape) * self.matrix).sum(1) for each in matrix]
        return self.scales @ torch.stack(columns, 1).to(self.scales)
