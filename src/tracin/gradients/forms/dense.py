"""Gradients written out: scales, biases, and all that is small or comes from a fallback."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.form import PerExampleGradient, squared_lengths


@final
@dataclass(frozen=True, eq=False)
class Dense(PerExampleGradient):
    """Per-example gradients as they are: [examples, *the parameter's shape]."""

    values: Tensor

    @property
    def examples(self) -> int:
        return self.values.shape[0]

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def numbers(self) -> int:
        return self.values[0].numel()

    def part(self, start: int, stop: int) -> "Dense":
        return Dense(self.values[start:stop])

    def dense(self) -> Tensor:
        return self.values.flatten(1) if self.values.ndim > 1 else self.values.unsqueeze(1)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        rows = self.dense()
        return weights.to(rows) @ rows

    def squared_norm(self) -> Tensor:
        return squared_lengths(self.dense())
