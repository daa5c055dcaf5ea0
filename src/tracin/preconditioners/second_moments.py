"""One side of a layer's curvature: the second moments of its inputs, or of its output gradients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

# Sides wider than this keep the diagonal alone: a matrix of 8,192 takes half a gigabyte.
WIDEST = 8192


def sums_dtype(device: torch.device) -> torch.dtype:
    """What sums over many examples are kept in: float64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


@final
class Moments:
    """Adds up second moments of vectors, and their sum, in float64.

    Groups of a convolution, and matrices of a stack, have moments of their own.

    Args:
        groups: How many.
        width: Of a vector.
        device: Where they lie.
    """

    def __init__(self, groups: int, width: int, device: torch.device) -> None:
        self.is_diagonal = width > WIDEST
        dtype = sums_dtype(device)
        shape = (groups, width) if self.is_diagonal else (groups, width, width)
        self.products = torch.zeros(shape, dtype=dtype, device=device)
        self.sums = torch.zeros(groups, width, dtype=dtype, device=device)
        self.count = torch.zeros(groups, dtype=dtype, device=device)

    def add(self, rows: Tensor, is_used: Tensor | None = None) -> None:
        """Add vectors: [groups, rows, width]; those that are not used, [groups, rows], left out."""
        if is_used is not None:
            rows = rows * is_used.unsqueeze(2)
        if self.is_diagonal:
            self.products += rows.square().sum(1)
        else:
            self.products += rows.mT @ rows
        self.sums += rows.sum(1)
        self.count += rows.shape[1] if is_used is None else is_used.sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for a file."""
        return {"products": self.products, "sums": self.sums, "count": self.count}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device) -> "Moments":
        """What `tensors` gave, on a device."""
        groups, width = tensors["sums"].shape
        found = cls(groups, width, device)
        found.is_diagonal = tensors["products"].ndim == 2
        found.products, found.sums, found.count = (
            tensors[name].to(device, found.sums.dtype) for name in ("products", "sums", "count")
        )
        return found

    def trace(self) -> float:
        """The sum of all squares."""
        squares = self.products
        return float((squares if self.is_diagonal else squares.diagonal(dim1=1, dim2=2)).sum())

    def described(self, has_constant: bool) -> str:
        """Its width, and whether it is a diagonal."""
        width = f"{self.sums.shape[1] + has_constant:,}"
        return f"diagonal {width}" if self.is_diagonal else width


@final
@dataclass(frozen=True, eq=False)
class DampedInverse:
    """The inverse of one side's damped second moments.

    Attributes:
        inverse: [groups, width, width], or the diagonal: [groups, width].
        is_diagonal: Which of the two.
        has_constant: Whether the last number stands for a constant 1, the bias's input.
    """

    inverse: Tensor
    is_diagonal: bool
    has_constant: bool

    @classmethod
    def of(
        cls,
        moments: Moments,
        per: Tensor | float,
        damping: float,
        dtype: torch.dtype,
        *,
        has_constant: bool,
    ) -> "DampedInverse | None":
        """Invert (moments / per + damping x their mean); None if that is singular.

        Args:
            moments: Of one side.
            per: What they are divided by: [groups], or one number for all.
            damping: In units of the mean eigenvalue.
            dtype: Of the result.
            has_constant: Whether a constant 1 is one more entry of each vector.
        """
        products = mean_products(moments, per, has_constant=has_constant)
        if moments.is_diagonal:
            damped = products + damping * products.mean(1, keepdim=True)
            if not bool((damped > 0).all()):
                return None
            return cls(damped.reciprocal().to(dtype), True, has_constant)
        size = products.shape[1]
        unit = products.diagonal(dim1=1, dim2=2).mean(1)
        eye = torch.eye(size, dtype=products.dtype, device=products.device)
        factor, failed = torch.linalg.cholesky_ex(
            products + (damping * unit).view(-1, 1, 1) * eye, check_errors=False
        )
        is_tiny = factor.diagonal(dim1=1, dim2=2).amin(1) <= 1e-7 * unit.sqrt()
        if bool(failed.any()) or bool((unit <= 0).any()) or bool(is_tiny.any()):
            return None
        return cls(torch.cholesky_inverse(factor).to(dtype), False, has_constant)

    def times(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The inverse times vectors [groups, rows, width].

        Returns:
            The same shape, and where the constant is one of the entries what it becomes:
            [groups, rows].
        """
        inverse = self.inverse.to(rows)
        width = rows.shape[2]
        if self.is_diagonal:
            last = inverse[:, width:].expand(-1, rows.shape[1]) if self.has_constant else None
            return rows * inverse[:, None, :width], last
        inner = rows @ inverse[:, :width, :width]
        if not self.has_constant:
            return inner, None
        border = inverse[:, :width, width]
        last = (rows @ border.unsqueeze(2)).squeeze(2) + inverse[:, width, width].unsqueeze(1)
        return inner + border.unsqueeze(1), last


def mean_products(moments: Moments, per: Tensor | float, *, has_constant: bool) -> Tensor:
    """The second moments: [groups, width, width], or their diagonal.

    Args:
        moments: Of one side.
        per: What they are divided by: [groups], or one number for all.
        has_constant: Whether a constant 1 is one more entry of each vector.
    """
    products = moments.products / torch.as_tensor(per).to(moments.products).clamp(min=1).view(
        -1, *(1,) * (moments.products.ndim - 1)
    )
    if has_constant:
        mean = moments.sums / moments.count.clamp(min=1).unsqueeze(1)
        products = _bordered(products, mean, is_diagonal=moments.is_diagonal)
    return products


def _bordered(products: Tensor, mean: Tensor, *, is_diagonal: bool) -> Tensor:
    """Second moments of vectors with a constant 1 at their end."""
    one = products.new_ones(products.shape[0], 1)
    if is_diagonal:
        return torch.cat([products, one], 1)
    top = torch.cat([products, mean.unsqueeze(2)], 2)
    bottom = torch.cat([mean, one], 1).unsqueeze(1)
    return torch.cat([top, bottom], 1)
