"""Convolutions, plain and transposed, of one to three dimensions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.gradients.forms import ConvFactors, Dense, Geometry, full
from tracin.gradients.rules.rule import Leaf, NoRule, Parts, Use, rule_for

Sizes = int | Sequence[int]


def _conv(
    dims: int,
    use: Use,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Parts:
    steps, spread = _each(stride, dims), _each(dilation, dims)
    pad: Callable[[Tensor], Tensor] | None = None
    if padding == "valid":
        padding = 0
    elif isinstance(padding, str):
        sides = weight.tensor.shape if isinstance(weight, Leaf) else weight.shape
        sizes = [by * (side - 1) for by, side in zip(spread, sides[2:], strict=True)]
        padding, pad = _same(sizes)
    geometry = Geometry(steps, _each(padding, dims), spread, False, (0,) * dims, groups)
    return _parts(use, input, weight, bias, geometry, pad)


def _conv_transpose(
    dims: int,
    use: Use,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Parts:
    geometry = Geometry(
        _each(stride, dims),
        _each(padding, dims),
        _each(dilation, dims),
        True,
        _each(output_padding, dims),
        groups,
    )
    return _parts(use, input, weight, bias, geometry, None)


for _dims, _plain, _transposed in (
    (1, (F.conv1d, torch.conv1d), (F.conv_transpose1d, torch.conv_transpose1d)),
    (2, (F.conv2d, torch.conv2d), (F.conv_transpose2d, torch.conv_transpose2d)),
    (3, (F.conv3d, torch.conv3d), (F.conv_transpose3d, torch.conv_transpose3d)),
):
    rule_for(*_plain)(partial(_conv, _dims))
    rule_for(*_transposed)(partial(_conv_transpose, _dims))


def _parts(
    use: Use,
    input: Any,
    weight: Any,
    bias: Any,
    geometry: Geometry,
    pad: Callable[[Tensor], Tensor] | None,
) -> Parts:
    if use.layout(input).dim != 0 or input.ndim != len(geometry.stride) + 2:
        raise NoRule("an input without a first dimension of examples")
    if input.is_complex() or any(_is_complex(each) for each in (weight, bias)):
        raise NoRule("complex numbers")
    images = use.data(input).flatten(0, 1)

    def patches(delta: Tensor) -> ConvFactors:
        inputs = full(images)
        return ConvFactors(
            inputs if pad is None else pad(inputs),
            delta.flatten(0, 1),
            tuple(weight.tensor.shape),
            geometry,
            copies=delta.shape[1],
        )

    return [
        (weight if isinstance(weight, Leaf) else None, patches),
        (bias, lambda delta: Dense(delta.flatten(3).sum((1, 3)))),
    ]


def _is_complex(value: Any) -> bool:
    value = value.tensor if isinstance(value, Leaf) else value
    return isinstance(value, Tensor) and value.is_complex()


def _each(sizes: Sizes, dims: int) -> tuple[int, ...]:
    if isinstance(sizes, int):
        return (sizes,) * dims
    return tuple(sizes) * dims if len(sizes) == 1 else tuple(sizes)


def _same(sizes: list[int]) -> tuple[Sizes, Callable[[Tensor], Tensor] | None]:
    """Padding "same": the odd zero of an even kernel goes to the right, as torch does."""
    if all(size % 2 == 0 for size in sizes):
        return tuple(size // 2 for size in sizes), None
    ends = [end for size in reversed(sizes) for end in (size // 2, size - size // 2)]
    return 0, lambda inputs: F.pad(inputs, ends)
