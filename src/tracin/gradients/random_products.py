"""A large matrix seen through its products with a few random vectors: enough to tell its length."""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

# The mean of so many squared products is a hundredth of what it should be, so that a length seems a
# tenth, once in 10^7 matrices of rank one, and more rarely in any other.
VECTORS = 8

# Matrices of fewer numbers are held whole, as are those of so few rows that little would be saved.
LARGE, ROWS = 1 << 18, 8 * VECTORS


@final
class RandomProducts:
    """Random vectors, normally distributed, that matrices are multiplied by from the left.

    Products are linear: those of a sum are the sum of the products, and those of a difference that
    is zero but for rounding are so, too. Their mean square is the matrix's squared length.

    Args:
        matrices: Those that vectors are needed for.
        random: Of the numbers.
    """

    def __init__(self, matrices: Iterable[Tensor], random: torch.Generator) -> None:
        rows = max((len(each) for each in matrices if is_large(each)), default=0)
        self._vectors = torch.randn(VECTORS, rows, generator=random)

    def vectors(self, matrix: Tensor) -> Tensor:
        """Those for one matrix, as precise as it is, and at least in float32: [vectors, rows]."""
        kind = torch.promote_types(matrix.dtype, torch.float32)
        self._vectors = self._vectors.to(matrix.device)
        return self._vectors[:, : len(matrix)].to(kind)

    def of(self, matrix: Tensor) -> Tensor:
        """The products: [vectors, columns]."""
        vectors = self.vectors(matrix)
        return vectors @ matrix.flatten(1).to(vectors)


def is_large(gradient: Tensor) -> bool:
    """Whether a gradient is worth no more than its products."""
    if gradient.is_complex() or gradient.ndim < 2:
        return False
    return gradient.numel() >= LARGE and len(gradient) >= ROWS
