"""A large matrix seen through its products with a few random vectors: enough to tell its length."""

from collections.abc import Mapping

import torch
from torch import Tensor

# The mean of so many squared products is a hundredth of what it should be, so that a length seems a
# tenth, once in 10^7 matrices of rank one, and more rarely in any other.
VECTORS = 8

# Matrices of fewer numbers are held whole, as are those of so few rows that little would be saved.
LARGE, ROWS = 1 << 18, 8 * VECTORS


def random_vectors(matrices: Mapping[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
    """Normally distributed vectors that each matrix is to be multiplied by from the left.

    Products are linear: those of a sum are the sum of the products, and those of a difference that
    is zero but for rounding are so, too. Their mean square is the matrix's squared length.

    Args:
        matrices: By name.
        random: Of the numbers, which all matrices share.

    Returns:
        [vectors, rows] by name, as precise as the matrix, and at least in float32.
    """
    rows = max((len(each) for each in matrices.values()), default=0)
    drawn = torch.randn(VECTORS, rows, generator=random)
    # One copy to a device serves all of its matrices.
    there = {device: drawn.to(device) for device in {each.device for each in matrices.values()}}
    return {
        name: there[each.device][:, : len(each)].to(torch.promote_types(each.dtype, torch.float32))
        for name, each in matrices.items()
    }


def along_matrix(vectors: Tensor, matrix: Tensor) -> Tensor:
    """The products: [vectors, columns]."""
    return vectors @ matrix.flatten(1).to(vectors)


def is_large(gradient: Tensor) -> bool:
    """Whether a gradient is worth no more than its products."""
    if gradient.is_complex() or gradient.ndim < 2:
        return False
    return gradient.numel() >= LARGE and len(gradient) >= ROWS
