"""One layer's curvature as the product of two sides: K-FAC's factors, from its gradients.

Source: Martens and Grosse, 2015, https://arxiv.org/abs/1503.05671; of convolutions Grosse and
Martens, 2016, https://arxiv.org/abs/1602.01407.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.data import move
from tracin.gradients.forms import (
    ConvFactors,
    Dense,
    OuterProduct,
    PerExampleGradient,
    SparseRows,
    Stacked,
)
from tracin.gradients.forms.form import blocks, by_blocks
from tracin.gradients.forms.rows import met_products
from tracin.preconditioners.second_moments import DampedInverse, Moments, sums_dtype

# Positions of an image whose patches count, at most. On a ResNet-20, a fit takes 3.5 plain passes
# with 64, 2.3 with 32, and scores correlate with those of all positions at .999, .997 (16: .954).
POSITIONS = 32


def below(tensors: Mapping[str, Tensor], beginning: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(beginning): one
        for name, one in tensors.items()
        if name.startswith(beginning)
    }


class LayerMetric(Protocol):
    """What multiplies the gradients of one weight, and of the bias that belongs to it."""

    def fits(self, form: PerExampleGradient) -> bool:
        """Whether gradients in this form can be multiplied."""
        ...

    def scaled(self, form: PerExampleGradient) -> tuple[PerExampleGradient, Dense | None]:
        """The weight's gradients times the metric, and the bias's, if there is one."""
        ...

    def squared_norm(self, form: PerExampleGradient) -> Tensor:
        """The squared lengths of both under the metric: [examples]."""
        ...


def is_factored(form: PerExampleGradient) -> bool:
    """Whether inputs and output gradients can be told apart in it."""
    if isinstance(form, ConvFactors):
        return len(form.weight_shape) == 4 and not form.geometry.transposed
    return isinstance(form, OuterProduct | Stacked)


def sides_of(form: PerExampleGradient) -> Iterator[tuple[Tensor, Tensor]]:
    """Output gradients and inputs, block by block: [groups, rows, out] and [groups, rows, in]."""
    if isinstance(form, OuterProduct):
        yield form.left.flatten(0, 1).unsqueeze(0), form.right.flatten(0, 1).unsqueeze(0)
    elif isinstance(form, Stacked):
        yield form.left.transpose(0, 1).flatten(1, 2), form.right.transpose(0, 1).flatten(1, 2)
    elif isinstance(form, ConvFactors):
        groups, numbers = form.geometry.groups, torch.Size(form.weight_shape[1:]).numel()
        seen = _seen_positions(form)
        each = form.copies * (form.deltas[0].numel() + len(seen) * groups * numbers)
        for start, stop in blocks(form.examples, each, form.device):
            some = form.part(start, stop)
            yield _grouped(some.deltas.flatten(2), groups), _patches(some, seen)
    else:
        raise TypeError(f"no sides in {type(form).__name__}; a bug in tracin")


def sums_of_sides(form: PerExampleGradient) -> dict[str, Tensor]:
    """What each side adds up to per example, as a bias's gradient does: [examples, width]."""
    if isinstance(form, OuterProduct):
        return {"left": form.left.sum(1), "right": form.right.sum(1)}
    return {"left": bias_of(form)} if isinstance(form, ConvFactors) else {}


def _seen_positions(form: ConvFactors) -> Tensor:
    """Which output positions' patches are looked at: all, or as many as tell what patches are like.

    Patches of one image are much alike, and all their second moments take nine times as long as a
    3 x 3 convolution.
    """
    positions = form.deltas[0, 0].numel()
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(positions, generator=generator)[:POSITIONS].sort().values


def _patches(form: ConvFactors, seen: Tensor) -> Tensor:
    """What the kernel meets at these positions: [groups, images x positions, in x kernel]."""
    geometry, (height, width) = form.geometry, form.weight_shape[2:]
    top, left = geometry.padding
    inputs = F.pad(form.inputs, (left, left, top, top))
    images, channels = inputs.shape[:2]
    rows, columns = form.deltas.shape[2:]
    by_image, by_channel, by_row, by_column = inputs.stride()
    windows = inputs.as_strided(
        (images, channels, rows, columns, height, width),
        (
            by_image,
            by_channel,
            by_row * geometry.stride[0],
            by_column * geometry.stride[1],
            by_row * geometry.dilation[0],
            by_column * geometry.dilation[1],
        ),
    )
    seen = move(seen, form.device)
    found = windows[:, :, seen // columns, seen % columns].movedim(2, 1).flatten(2)
    return found.unflatten(2, (geometry.groups, -1)).permute(2, 0, 1, 3).flatten(1, 2)


def _grouped(columns: Tensor, groups: int) -> Tensor:
    """[images, groups x width, positions] -> [groups, images x positions, width]."""
    return columns.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


@final
class FactorMoments:
    """The second moments of both sides of one weight.

    Args:
        left: Of output gradients.
        right: Of inputs.
        examples: How many they are of.
    """

    KIND: ClassVar[str] = "factors"

    def __init__(self, left: Moments, right: Moments, examples: int = 0) -> None:
        self.left, self.right, self.examples = left, right, examples

    @classmethod
    def like(cls, form: PerExampleGradient) -> "FactorMoments":
        """Those of no example yet, for gradients such as these."""
        left, right = next(sides_of(form.part(0, 1)))
        return cls(
            Moments(left.shape[0], left.shape[2], form.device),
            Moments(right.shape[0], right.shape[2], form.device),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name, for a file."""
        left, right = self.left.tensors(), self.right.tensors()
        return {
            **{f"left.{name}": one for name, one in left.items()},
            **{f"right.{name}": one for name, one in right.items()},
            "examples": torch.tensor(self.examples),
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device) -> "FactorMoments":
        """What `tensors` gave, on a device."""
        left, right = (
            Moments.of_tensors(below(tensors, f"{side}."), device) for side in ("left", "right")
        )
        return cls(left, right, int(tensors["examples"]))

    def summary(self) -> list[float]:
        """A few numbers that other gradients would change."""
        return [self.left.trace(), self.right.trace()]

    @staticmethod
    def fits(form: PerExampleGradient) -> bool:
        """Whether gradients in this form can be added."""
        return is_factored(form)

    def add(self, form: PerExampleGradient) -> None:
        """Add a batch. Positions without an output gradient, as of padding, are left out."""
        has_padding = isinstance(form, Stacked) or (
            isinstance(form, OuterProduct) and form.positions > 1
        )
        for left, right in sides_of(form):
            self.left.add(left, right.any(2) if has_padding else None)
            self.right.add(right, left.any(2) if has_padding else None)
        self.examples += form.examples

    def merge(self, other: "FactorMoments") -> None:
        """Add another batch's."""
        for mine, others in ((self.left, other.left), (self.right, other.right)):
            mine.products += others.products
            mine.sums += others.sums
            mine.count += others.count
        self.examples += other.examples

    def metric(self, damping: float, dtype: torch.dtype, *, bias: str) -> "KroneckerMetric | None":
        """The inverse of both; None if one is singular.

        Args:
            damping: In units of each side's mean eigenvalue.
            dtype: Of the gradients.
            bias: The side whose vectors get a constant 1 for the bias: "left", "right" or "".
        """
        left, right = (
            DampedInverse.of(side, per, damping, dtype, has_constant=has_constant)
            for side, per, has_constant in self.sides(bias)
        )
        return None if left is None or right is None else KroneckerMetric(left, right)

    def described(self, bias: str) -> str:
        """How the curvature is held; `bias` is the side whose vectors get a constant 1, or ""."""
        groups = self.left.products.shape[0]
        left, right = (one.described(has) for one, _, has in self.sides(bias))
        return f"factors {left} x {right}" + (f", {groups} times" if groups > 1 else "")

    def sides(self, bias: str) -> list[tuple[Moments, Tensor | float, bool]]:
        """Left and right: moments, what they are divided by, whether a constant 1 is one entry."""
        inputs, outputs = (self.left, self.right) if bias == "left" else (self.right, self.left)
        of_inputs = (inputs, inputs.count, bool(bias))
        of_outputs = (outputs, float(self.examples), False)
        return [of_inputs, of_outputs] if bias == "left" else [of_outputs, of_inputs]


@final
@dataclass(frozen=True, eq=False)
class KroneckerMetric:
    """Output gradients times one inverse, inputs times another; products of factors stay so."""

    left: DampedInverse
    right: DampedInverse

    @staticmethod
    def fits(form: PerExampleGradient) -> bool:
        """Whether gradients in this form can be multiplied."""
        return is_factored(form)

    def scaled(self, form: PerExampleGradient) -> tuple[PerExampleGradient, Dense | None]:
        """The weight's gradients times the metric, and the bias's."""
        if isinstance(form, OuterProduct):
            return self._outer(form)
        if isinstance(form, Stacked):
            left, _ = self.left.times(form.left.transpose(0, 1).flatten(1, 2))
            right, _ = self.right.times(form.right.transpose(0, 1).flatten(1, 2))
            shape = form.matrices, form.examples, -1
            left, right = (side.unflatten(1, shape[1:]).transpose(0, 1) for side in (left, right))
            return Stacked(left, right), None
        if isinstance(form, ConvFactors):
            return self._written(form)
        raise TypeError(f"no factors in {type(form).__name__}; a bug in tracin")

    def squared_norm(self, form: PerExampleGradient) -> Tensor:
        """The squared lengths of weight and bias under the metric: [examples]."""
        if isinstance(form, OuterProduct):
            most = form.positions * max(form.positions, form.left.shape[2], form.right.shape[2])
            return by_blocks(
                form.examples,
                most,
                form.device,
                lambda start, stop: self._outer_norm(form.part(start, stop)),
            )
        weight, bias = self.scaled(form)
        assert isinstance(weight, Dense | Stacked)
        if isinstance(weight, Stacked) and isinstance(form, Stacked):
            return sum(  # type: ignore[return-value]  # tensors, of which there is one at least
                _gram(one.left, one.right, other.left, other.right, None, None)
                for one, other in zip(form.each, weight.each, strict=True)
            )
        squares = torch.linalg.vecdot(form.dense(), weight.dense())
        if bias is not None and isinstance(form, ConvFactors):
            squares = squares + torch.linalg.vecdot(bias_of(form).flatten(1), bias.dense())
        return squares

    def _outer(self, form: OuterProduct) -> tuple[OuterProduct, Dense | None]:
        left, right, last_left, last_right = self._sides(form)
        bias = None
        if last_right is not None:
            bias = Dense(torch.linalg.vecdot(left, last_right.unsqueeze(2), dim=1))
        elif last_left is not None:
            bias = Dense(torch.linalg.vecdot(right, last_left.unsqueeze(2), dim=1))
        return OuterProduct(left, right), bias

    def _outer_norm(self, form: OuterProduct) -> Tensor:
        return _gram(form.left, form.right, *self._sides(form))

    def _sides(self, form: OuterProduct) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Both sides times their inverses, and what the constant of each becomes."""
        shape = form.left.shape[:2]
        left, last_left = self.left.times(form.left.flatten(0, 1).unsqueeze(0))
        right, last_right = self.right.times(form.right.flatten(0, 1).unsqueeze(0))
        return (
            left[0].unflatten(0, shape),
            right[0].unflatten(0, shape),
            None if last_left is None else last_left.view(shape),
            None if last_right is None else last_right.view(shape),
        )

    def _written(self, form: ConvFactors) -> tuple[Dense, Dense | None]:
        """Each example's kernel is written out, which its factors could not be saved from."""
        groups, rows = form.geometry.groups, form.weight_shape[0]
        has_bias = self.right.has_constant
        weight = form.deltas.new_empty(form.examples, form.numbers)
        bias = form.deltas.new_empty(form.examples, rows) if has_bias else None
        for start, stop in blocks(form.examples, form.written, form.device):
            some = form.part(start, stop)
            matrices = some.dense().view(stop - start, groups, rows // groups, -1)
            if has_bias:
                own = bias_of(some).view(stop - start, groups, -1, 1)
                matrices = torch.cat([matrices, own], 3)
            found = _between(self.left, matrices, self.right)
            if bias is not None:
                bias[start:stop] = found[..., -1].flatten(1)
                found = found[..., :-1]
            weight[start:stop] = found.flatten(1)
        return Dense(weight), None if bias is None else Dense(bias)


def bias_of(form: ConvFactors) -> Tensor:
    """The gradients of a convolution's bias: [examples, channels out]."""
    return form.deltas.flatten(2).sum(2).unflatten(0, (form.examples, form.copies)).sum(1)


def _between(left: DampedInverse, matrices: Tensor, right: DampedInverse) -> Tensor:
    """[examples, groups, out, in] between the two inverses."""
    inner = right.inverse.to(matrices)
    matrices = matrices * inner.unsqueeze(1) if right.is_diagonal else matrices @ inner
    outer = left.inverse.to(matrices)
    return matrices * outer.unsqueeze(2) if left.is_diagonal else outer @ matrices


def _gram(
    left: Tensor,
    right: Tensor,
    other_left: Tensor,
    other_right: Tensor,
    last_left: Tensor | None,
    last_right: Tensor | None,
) -> Tensor:
    """Products of sums of outer products, with the constant's share: [examples]."""
    lefts, rights = torch.bmm(left, other_left.mT), torch.bmm(right, other_right.mT)
    if last_left is not None:
        lefts = lefts + last_left.unsqueeze(1)
    if last_right is not None:
        rights = rights + last_right.unsqueeze(1)
    return torch.linalg.vecdot(lefts.flatten(1), rights.flatten(1))


@final
class RowMoments:
    """How often each row of a table is looked up, and the second moments of what comes back.

    Args:
        counts: How often: [rows of the table].
        right: Of what comes back.
        examples: How many they are of.
    """

    KIND: ClassVar[str] = "rows"

    def __init__(self, counts: Tensor, right: Moments, examples: int = 0) -> None:
        self.counts, self.right, self.examples = counts, right, examples

    @classmethod
    def like(cls, form: SparseRows) -> "RowMoments":
        """Those of no example yet, for gradients such as these."""
        counts = torch.zeros(form.size, device=form.device, dtype=sums_dtype(form.device))
        return cls(counts, Moments(1, form.values.shape[2], form.device))

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name, for a file."""
        right = {f"right.{name}": one for name, one in self.right.tensors().items()}
        return {"counts": self.counts, **right, "examples": torch.tensor(self.examples)}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device) -> "RowMoments":
        """What `tensors` gave, on a device."""
        right = Moments.of_tensors(below(tensors, "right."), device)
        counts = tensors["counts"].to(device, right.products.dtype)
        return cls(counts, right, int(tensors["examples"]))

    def summary(self) -> list[float]:
        """A few numbers that other gradients would change."""
        return [float(self.counts.sum()), self.right.trace()]

    @staticmethod
    def fits(form: PerExampleGradient) -> bool:
        """Whether gradients in this form can be added."""
        return isinstance(form, SparseRows)

    def add(self, form: PerExampleGradient) -> None:
        """Add a batch. Positions without an output gradient, as of padding, are left out."""
        assert isinstance(form, SparseRows)
        values = form.values.flatten(0, 1)
        used = values.any(1)
        self.counts.index_add_(0, form.index.flatten(), used.to(self.counts))
        self.right.add(values.unsqueeze(0), used.unsqueeze(0))
        self.examples += form.examples

    def merge(self, other: "RowMoments") -> None:
        """Add another batch's."""
        self.counts += other.counts
        self.right.products += other.right.products
        self.examples += other.examples

    def described(self, bias: str) -> str:
        """How the curvature is held."""
        return f"factors frequencies of {len(self.counts):,} rows x {self.right.described(False)}"

    def metric(self, damping: float, dtype: torch.dtype) -> "TableMetric | None":
        """The inverse of both; None if one is singular."""
        share = self.counts / self.counts.sum().clamp(min=1)
        damped = share + damping * share.mean()
        side = DampedInverse.of(self.right, self.examples, damping, dtype, has_constant=False)
        if side is None or not bool((damped > 0).all()):
            return None
        return TableMetric(damped.reciprocal().to(dtype), side)


@final
@dataclass(frozen=True, eq=False)
class TableMetric:
    """A table's rows, divided by how often they are looked up; their values times an inverse."""

    rows: Tensor  # [size]
    right: DampedInverse

    @staticmethod
    def fits(form: PerExampleGradient) -> bool:
        """Whether gradients in this form can be multiplied."""
        return isinstance(form, SparseRows)

    def scaled(self, form: PerExampleGradient) -> tuple[SparseRows, None]:
        """The table's gradients times the metric."""
        assert isinstance(form, SparseRows)
        values, _ = self.right.times(form.values.flatten(0, 1).unsqueeze(0))
        values = values[0].view_as(form.values) * self.rows.to(values)[form.index].unsqueeze(2)
        return SparseRows(form.index, values, form.size), None

    def squared_norm(self, form: PerExampleGradient) -> Tensor:
        """The squared lengths under the metric: [examples]."""
        assert isinstance(form, SparseRows)

        def one(start: int, stop: int) -> Tensor:
            some = form.part(start, stop)
            return met_products(some, self.scaled(some)[0].values)

        positions, width = form.values.shape[1:]
        return by_blocks(form.examples, positions * max(positions, width), form.device, one)


@final
class UnitMoments:
    """The mean square of a parameter's gradient, where it has no sides of its own.

    Args:
        squares: Their sum.
        numbers: How many numbers were squared.
    """

    KIND: ClassVar[str] = "unit"

    def __init__(self, squares: Tensor | float = 0.0, numbers: int = 0) -> None:
        self.squares, self.numbers = squares, numbers

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for a file."""
        squares = torch.as_tensor(self.squares, dtype=torch.float64, device="cpu")
        return {"squares": squares, "numbers": torch.tensor(self.numbers)}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device) -> "UnitMoments":
        """What `tensors` gave."""
        return cls(float(tensors["squares"]), int(tensors["numbers"]))

    def summary(self) -> list[float]:
        """A number that other gradients would change."""
        return [float(self.squares)]

    @staticmethod
    def fits(form: PerExampleGradient) -> bool:
        """Any does."""
        return True

    def add(self, form: PerExampleGradient) -> None:
        """Add a batch."""
        self.squares = self.squares + form.squared_norm().to(sums_dtype(form.device)).sum()
        self.numbers += form.examples * form.numbers

    def merge(self, other: "UnitMoments") -> None:
        """Add another batch's."""
        self.squares = self.squares + other.squares
        self.numbers += other.numbers

    def described(self, bias: str) -> str:
        """How the curvature is held."""
        return "one number"

    def metric(self, damping: float) -> "UnitMetric":
        """What both sides would give if they were multiples of the identity."""
        mean = float(self.squares) / max(1, self.numbers)
        return UnitMetric(1 / ((1 + damping) ** 2 * mean) if mean > 0 else 0.0)


@final
@dataclass(frozen=True, eq=False)
class UnitMetric:
    """One number for a whole parameter, in the unit of all layers."""

    factor: float

    @staticmethod
    def fits(form: PerExampleGradient) -> bool:
        """Any does."""
        return True

    def scaled(self, form: PerExampleGradient) -> tuple[PerExampleGradient, None]:
        """The gradients times the number."""
        if isinstance(form, OuterProduct):
            return OuterProduct(form.left * self.factor, form.right), None
        if isinstance(form, SparseRows):
            return SparseRows(form.index, form.values * self.factor, form.size), None
        return Dense(form.dense() * self.factor), None

    def squared_norm(self, form: PerExampleGradient) -> Tensor:
        """The squared lengths times the number: [examples]."""
        return form.squared_norm() * self.factor
