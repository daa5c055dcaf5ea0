"""A layer's gradients in the eigenbasis of its two sides, and their second moments there.

Source: George et al., 2018, https://arxiv.org/abs/1806.03884.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tracin.gradients.forms import (
    ConvFactors,
    Dense,
    OuterProduct,
    PerExampleGradient,
    Stacked,
)
from tracin.gradients.forms.form import blocks, by_blocks
from tracin.preconditioners.layer_metrics import FactorMoments, bias_of, is_factored
from tracin.preconditioners.second_moments import Moments, mean_products, sums_dtype


@final
@dataclass(frozen=True, eq=False)
class SideBasis:
    """The eigenvectors of one side's second moments.

    Attributes:
        vectors: [groups, width, width], one per column; None for a side that keeps its diagonal.
        has_constant: Whether the last number stands for a constant 1, the bias's input.
    """

    vectors: Tensor | None
    has_constant: bool

    @classmethod
    def of(
        cls, moments: Moments, per: Tensor | float, dtype: torch.dtype, *, has_constant: bool
    ) -> "SideBasis":
        """The basis in the precision of the gradients; arguments as of `DampedInverse.of`."""
        if moments.is_diagonal:
            return cls(None, has_constant)
        products = mean_products(moments, per, has_constant=has_constant)
        return cls(torch.linalg.eigh(products).eigenvectors.to(dtype), has_constant)

    def times(self, rows: Tensor) -> Tensor:
        """Vectors in the basis: [groups, rows, width] -> the same, with the constant's entry."""
        if self.has_constant:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
        return rows if self.vectors is None else rows @ self.vectors.to(rows)


@final
@dataclass(frozen=True, eq=False)
class Bases:
    """Both sides of one weight."""

    left: SideBasis
    right: SideBasis

    @classmethod
    def of(cls, moments: FactorMoments, bias: str, dtype: torch.dtype) -> "Bases":
        """The bases of both sides; `bias` is the side that has a constant 1, or ""."""
        left, right = (
            SideBasis.of(side, per, dtype, has_constant=has_constant)
            for side, per, has_constant in moments.sides(bias)
        )
        return cls(left, right)

    def outer(self, form: OuterProduct, group: int = 0) -> OuterProduct:
        """Outer products in the basis, the bias's entries among them."""
        sides = []
        for basis, side in ((self.left, form.left), (self.right, form.right)):
            one = basis
            if basis.vectors is not None and len(basis.vectors) > 1:
                one = SideBasis(basis.vectors[group : group + 1], basis.has_constant)
            moved = one.times(side.flatten(0, 1).unsqueeze(0))
            sides.append(moved[0].unflatten(0, side.shape[:2]))
        return OuterProduct(*sides)

    def written(self, form: PerExampleGradient) -> Tensor:
        """Gradients in the basis, written out: [examples, groups, out, in]."""
        if isinstance(form, OuterProduct):
            moved = self.outer(form)
            return torch.bmm(moved.left.mT, moved.right).unsqueeze(1)
        if isinstance(form, Stacked):
            each = [self.outer(one, m) for m, one in enumerate(form.each)]
            return torch.stack([torch.bmm(one.left.mT, one.right) for one in each], 1)
        if isinstance(form, ConvFactors):
            groups, rows = form.geometry.groups, form.weight_shape[0]
            matrices = form.dense().view(form.examples, groups, rows // groups, -1)
            if self.right.has_constant:
                own = bias_of(form).view(form.examples, groups, -1, 1)
                matrices = torch.cat([matrices, own], 3)
            if self.left.vectors is not None:
                matrices = self.left.vectors.mT.to(matrices) @ matrices
            if self.right.vectors is not None:
                matrices = matrices @ self.right.vectors.to(matrices)
            return matrices
        raise TypeError(f"no sides in {type(form).__name__}; a bug in tracin")

    def back(self, matrices: Tensor) -> tuple[Dense, Dense | None]:
        """The gradients of weight and bias from those in the basis: [examples, groups, out, in]."""
        if self.left.vectors is not None:
            matrices = self.left.vectors.to(matrices) @ matrices
        if self.right.vectors is not None:
            matrices = matrices @ self.right.vectors.mT.to(matrices)
        if self.right.has_constant:
            return Dense(matrices[..., :-1].flatten(1)), Dense(matrices[..., -1].flatten(1))
        if self.left.has_constant:
            return Dense(matrices[..., :-1, :].flatten(1)), Dense(matrices[..., -1, :].flatten(1))
        return Dense(matrices.flatten(1)), None


@final
class Eigenvalues:
    """Adds up squared gradients in the basis, entry by entry, in float64.

    Args:
        bases: Of the weight.
    """

    def __init__(self, bases: Bases) -> None:
        self.bases = bases
        self.squares: Tensor | float = 0.0  # [groups, out, in]
        self.examples = 0

    def tensors(self) -> dict[str, Tensor]:
        """Eigenvectors and sums by name, for a file."""
        sides = {"left": self.bases.left.vectors, "right": self.bases.right.vectors}
        found = {side: vectors for side, vectors in sides.items() if vectors is not None}
        if isinstance(self.squares, Tensor):
            found["squares"] = self.squares
        return {**found, "examples": torch.tensor(self.examples)}

    @classmethod
    def of_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        sides: Sequence[tuple[Moments, Any, bool]],
        device: torch.device,
    ) -> "Eigenvalues":
        """What `tensors` gave, on a device.

        Args:
            tensors: By name.
            sides: What `FactorMoments.sides` gives of the weight.
            device: Where they go.

        Raises:
            KeyError: Some are missing.
        """
        bases = [
            SideBasis(None if moments.is_diagonal else tensors[side].to(device), has_constant)
            for side, (moments, _, has_constant) in zip(("left", "right"), sides, strict=True)
        ]
        found = cls(Bases(*bases))
        if "squares" in tensors:
            found.squares = tensors["squares"].to(device, sums_dtype(device))
        found.examples = int(tensors["examples"])
        return found

    @staticmethod
    def fits(form: PerExampleGradient) -> bool:
        """Whether gradients in this form can be added."""
        return is_factored(form)

    def add(self, form: PerExampleGradient) -> None:
        """Add a batch."""
        dtype = sums_dtype(form.device)
        self.examples += form.examples
        if isinstance(form, OuterProduct) and form.positions == 1:
            moved = self.bases.outer(form)
            left, right = moved.left[:, 0].square(), moved.right[:, 0].square()
            self.squares = self.squares + (left.mT @ right).to(dtype).unsqueeze(0)
            return
        for start, stop in blocks(form.examples, form.written, form.device):
            squares = self.bases.written(form.part(start, stop)).square_()
            self.squares = self.squares + squares.sum(0).to(dtype)

    def merge(self, other: "Eigenvalues") -> None:
        """Add another batch's."""
        self.squares = self.squares + other.squares
        self.examples += other.examples

    def metric(self, damping: float, dtype: torch.dtype) -> "EigenMetric | None":
        """The inverse; None if it is singular."""
        if not isinstance(self.squares, Tensor):
            return None
        values = self.squares / max(1, self.examples)
        damped = values + damping * values.mean((1, 2), keepdim=True)
        if not bool((damped > 0).all()):
            return None
        inverse = damped.reciprocal()
        is_finite = bool(torch.isfinite(inverse.to(dtype)).all())
        return EigenMetric(self.bases, inverse.to(dtype)) if is_finite else None


@final
@dataclass(frozen=True, eq=False)
class EigenMetric:
    """Gradients in the eigenbasis, divided by eigenvalues, and back: written out.

    Attributes:
        bases: Of the weight.
        inverse: 1 / (eigenvalue + damping): [groups, out, in], the bias's among them.
    """

    bases: Bases
    inverse: Tensor

    @staticmethod
    def fits(form: PerExampleGradient) -> bool:
        """Whether gradients in this form can be multiplied."""
        return is_factored(form)

    def scaled(self, form: PerExampleGradient) -> tuple[Dense, Dense | None]:
        """The weight's gradients times the metric, and the bias's."""
        found = [
            self.bases.back(self._written(form.part(start, stop)))
            for start, stop in blocks(form.examples, form.written, form.device)
        ]
        weight = Dense(torch.cat([one.values for one, _ in found]))
        biases = [bias.values for _, bias in found if bias is not None]
        return weight, Dense(torch.cat(biases)) if biases else None

    def squared_norm(self, form: PerExampleGradient) -> Tensor:
        """The squared lengths of weight and bias under the metric: [examples]."""
        if isinstance(form, OuterProduct) and form.positions == 1:
            moved = self.bases.outer(form)
            left, right = moved.left[:, 0].square(), moved.right[:, 0].square()
            return torch.linalg.vecdot(left @ self.inverse[0].to(left), right)

        def one(start: int, stop: int) -> Tensor:
            matrices = self.bases.written(form.part(start, stop))
            return (matrices.square() * self.inverse.to(matrices)).sum((1, 2, 3))

        return by_blocks(form.examples, form.written, form.device, one)

    def _written(self, form: PerExampleGradient) -> Tensor:
        matrices = self.bases.written(form)
        return matrices.mul_(self.inverse.to(matrices))
