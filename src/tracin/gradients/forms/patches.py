"""A convolution's gradient as inputs and output gradients, written out by one grouped kernel."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.form import PerExampleGradient


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks: what torch calls its stride, padding, dilation and groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


@final
@dataclass(frozen=True, eq=False)
class ConvFactors(PerExampleGradient):
    """Gradient i is the weight gradient of the convolution of inputs[i] given deltas[i].

    An example may hold several images (`copies`): its gradient is the sum of theirs.
    """

    inputs: Tensor  # [examples x copies, channels in, *size]
    deltas: Tensor  # [examples x copies, channels out, *size]
    weight_shape: tuple[int, ...]
    geometry: Geometry
    copies: int = 1

    @property
    def examples(self) -> int:
        return self.inputs.shape[0] // self.copies

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @property
    def numbers(self) -> int:
        return torch.Size(self.weight_shape).numel()

    @property
    def written(self) -> int:
        return self.numbers * self.copies

    def part(self, start: int, stop: int) -> "ConvFactors":
        rows = slice(start * self.copies, stop * self.copies)
        return ConvFactors(
            self.inputs[rows], self.deltas[rows], self.weight_shape, self.geometry, self.copies
        )

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """As one ordinary weight gradient: no example's own is made."""
        each = weights.to(self.deltas).repeat_interleave(self.copies)
        deltas = self.deltas * each.view(-1, *(1,) * (self.deltas.ndim - 1))
        geometry = self.geometry
        return torch.ops.aten.convolution_backward(
            deltas,
            self.inputs,
            self.inputs.new_empty(1).expand(self.weight_shape),  # only its shape is read
            None,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            geometry.transposed,
            geometry.output_padding,
            geometry.groups,
            [False, True, False],
        )[1].flatten()

    def dense(self) -> Tensor:
        """Examples become groups of one large convolution: its weight gradient holds them all."""
        images = self.inputs.shape[0]
        first, *rest = self.weight_shape
        shape = (images * first, *rest)
        geometry = self.geometry
        weight = torch.ops.aten.convolution_backward(
            self.deltas.reshape(1, -1, *self.deltas.shape[2:]),
            self.inputs.reshape(1, -1, *self.inputs.shape[2:]),
            self.inputs.new_empty(1).expand(shape),  # only its shape is read
            None,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            geometry.transposed,
            geometry.output_padding,
            images * geometry.groups,
            [False, True, False],
        )[1]
        rows = weight.reshape(self.examples, self.copies, self.numbers)
        return rows[:, 0] if self.copies == 1 else rows.sum(1)

    def squared_norm(self) -> Tensor:
        return self.written_norm()

    def along(self, weight: Tensor) -> Tensor:
        """Each gradient's product with one dense gradient, as one ordinary convolution: [examples].

        The convolution of the inputs by the other gradient, multiplied by the deltas: no
        per-example gradient is written out.
        """
        geometry = self.geometry
        moved = torch.ops.aten.convolution(
            self.inputs,
            weight.reshape(self.weight_shape),
            None,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            geometry.transposed,
            geometry.output_padding,
            geometry.groups,
        )
        products = torch.linalg.vecdot(moved.flatten(1), self.deltas.flatten(1))
        return products.reshape(self.examples, self.copies).sum(1)
