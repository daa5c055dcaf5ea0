"""The paper's projection of a fully connected layer's gradients: random numbers on both sides.

The gradient of one example is an outer product, of the loss's gradient by the layer's outputs and
of its inputs. Each factor is projected, and their smaller outer product is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F


@final
@dataclass(frozen=True, eq=False)
class Factors:
    """The gradients of a fully connected layer under cross-entropy: one outer product per example.

    Attributes:
        left: The loss's gradient by the layer's outputs: [examples, out].
        right: The layer's inputs, and 1 for its bias: [examples, in + 1].
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, layer: Mapping[str, Tensor], inputs: Tensor, labels: Tensor) -> "Factors":
        """The factors of some examples.

        Args:
            layer: Its `weight` and `bias`.
            inputs: [examples, in].
            labels: [examples].
        """
        outputs = F.linear(inputs, layer["weight"], layer["bias"])
        left = outputs.softmax(1)
        left[torch.arange(len(labels)), labels] -= 1
        return cls(left, F.pad(inputs, (0, 1), value=1))

    def dot(self, others: "Factors") -> Tensor:
        """The dot product of every gradient with every other, exact: [examples, others]."""
        return (self.right @ others.right.T) * (self.left @ others.left.T)

    def squared_lengths(self) -> Tensor:
        """The squared length of every gradient, exact: [examples]."""
        return self.right.square().sum(1) * self.left.square().sum(1)


@final
@dataclass(frozen=True, eq=False)
class TwoSided:
    """A projection to `len(right) x len(left)` numbers; dot products stay right on average.

    Attributes:
        left: [columns, out], each entry of variance 1 / columns.
        right: [columns, in + 1], likewise.

    Source: Pruthi et al. 2020, https://arxiv.org/abs/2002.08484, section 5.3 (1,472 numbers).
    """

    left: Tensor
    right: Tensor

    @classmethod
    def random(cls, sides: tuple[int, int], factors: Factors, seed: int) -> "TwoSided":
        """Independent normal numbers for a layer.

        Args:
            sides: The columns of its inputs, and of its outputs.
            factors: Any gradients of the layer, for its size.
            seed: Of the numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        right, left = (
            torch.randn(columns, factor.shape[1], generator=generator) / columns**0.5
            for columns, factor in zip(sides, (factors.right, factors.left), strict=True)
        )
        return cls(left, right)

    def rows(self, factors: Factors) -> Tensor:
        """What is kept of some gradients: [examples, columns x columns]."""
        left, right = factors.left @ self.left.T, factors.right @ self.right.T
        return (left[:, :, None] * right[:, None]).flatten(1)


def self_influence_error(sides: tuple[int, int]) -> float:
    """The standard deviation of a projected squared length, relative to the exact one.

    Of the product of two independent means of squares of normal numbers.
    """
    return ((1 + 2 / sides[0]) * (1 + 2 / sides[1]) - 1) ** 0.5
