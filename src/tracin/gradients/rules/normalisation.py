"""Scales and shifts behind a normalisation: the gradient is delta x normalised input, summed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.gradients.forms import Dense
from tracin.gradients.rules.rule import (
    Leaf,
    NoRule,
    Parts,
    Use,
    full,
    positions,
    rule_for,
    summed,
)


@rule_for(F.layer_norm, torch.layer_norm)
def layer_norm(
    use: Use,
    input: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Parts:
    """Normalised over the last dimensions of each position."""
    return _last(
        use,
        input,
        normalized_shape,
        weight,
        bias,
        lambda inputs: F.layer_norm(inputs, list(normalized_shape), None, None, eps),
    )


@rule_for(F.rms_norm, torch.rms_norm)
def rms_norm(
    use: Use,
    input: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    eps: float | None = None,
) -> Parts:
    """Divided by the root mean square of the last dimensions."""
    return _last(
        use,
        input,
        normalized_shape,
        weight,
        None,
        lambda inputs: F.rms_norm(inputs, list(normalized_shape), None, eps),
    )


@rule_for(F.batch_norm)
def batch_norm(
    use: Use,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Parts:
    """In eval mode: an affine map a channel, of fixed statistics."""
    if use.layout(input).dim != 0 or input.ndim < 2:
        raise NoRule("an input without a first dimension of examples")
    if training and use.is_live:
        return _channels(
            use,
            input,
            weight,
            bias,
            lambda inputs: F.batch_norm(inputs, None, None, training=True, eps=eps),
        )
    if training or isinstance(running_mean, Leaf) or isinstance(running_var, Leaf):
        raise NoRule("statistics of the batch")
    images = use.data(input).flatten(0, 1)
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def sums(delta: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift gradients of every image, as channels of one image in one kernel."""
        if id(delta) not in made:
            count, channels = images.shape[:2]
            wide = (1, count * channels, *images.shape[2:])
            mean, variance = full(running_mean).repeat(count), full(running_var).repeat(count)
            _, scale, shift = torch.ops.aten.native_batch_norm_backward(
                delta.reshape(wide),
                full(images).reshape(wide),
                torch.ones_like(mean),  # CUDA's kernel makes the gradients like it
                mean,
                variance,
                *_saved(mean, variance, eps),
                False,
                eps,
                [False, True, True],
            )
            rows = (delta.shape[0], delta.shape[1], channels)
            made[id(delta)] = scale.view(rows).sum(1), shift.view(rows).sum(1)
        return made[id(delta)]

    return [
        (weight, lambda delta: Dense(sums(delta)[0])),
        (bias, lambda delta: Dense(sums(delta)[1])),
    ]


@rule_for(F.instance_norm)
def instance_norm(
    use: Use,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Parts:
    """Normalised over the positions of each channel of each example."""

    def normalised(inputs: Tensor) -> Tensor:
        if use_input_stats:
            return F.instance_norm(inputs, eps=eps)
        return _standardised(inputs, running_mean, running_var, eps)

    return _channels(use, input, weight, bias, normalised)


@rule_for(F.group_norm, torch.group_norm)
def group_norm(
    use: Use,
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Parts:
    """Normalised over groups of channels."""
    return _channels(
        use, input, weight, bias, lambda inputs: F.group_norm(inputs, num_groups, None, None, eps)
    )


def _last(
    use: Use,
    input: Any,
    normalized_shape: Sequence[int],
    weight: Any,
    bias: Any,
    normalise: Callable[[Tensor], Tensor],
) -> Parts:
    dims = len(normalized_shape)
    if use.layout(input).dim >= input.ndim - dims:
        raise NoRule("the examples are normalised over")
    inputs = use.data(input)

    def shift(values: Tensor) -> Dense:
        shape = (values.shape[0], *normalized_shape)
        return Dense(summed(positions(values.flatten(-dims))).view(shape))

    return [
        (weight, lambda delta: shift(delta * normalise(full(inputs)))),
        (bias, shift),
    ]


def _channels(
    use: Use, input: Any, weight: Any, bias: Any, normalise: Callable[[Tensor], Tensor]
) -> Parts:
    if use.layout(input).dim != 0 or input.ndim < 2:
        raise NoRule("an input without a first dimension of examples")
    inputs = use.data(input)  # [examples, copies, channels, *positions]

    def scale(delta: Tensor) -> Dense:
        normalised = normalise(full(inputs).flatten(0, 1)).view_as(delta)
        return _over_positions(delta * normalised)

    return [(weight, scale), (bias, _over_positions)]


def _saved(mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor | None, Tensor | None]:
    """What a forward pass keeps for a backward pass: CUDA's asks for it also in eval mode."""
    if not mean.is_cuda:
        return None, None
    if mean.dtype in (torch.float16, torch.bfloat16):
        mean, variance = mean.float(), variance.float()
    return mean, torch.rsqrt(variance + eps)


def _over_positions(values: Tensor) -> Dense:
    if values.ndim > 3:
        values = values.flatten(3).sum(3)
    return Dense(values.sum(1))


def _standardised(inputs: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    shape = (1, -1, *(1,) * (inputs.ndim - 2))
    scale = torch.rsqrt(full(variance) + eps)
    return (inputs - full(mean).view(shape)) * scale.view(shape)
