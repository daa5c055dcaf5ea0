"""Counts the floating point operations of a work: those that its matrix products ask for."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

aten = torch.ops.aten


def operations(work: Callable[[], object]) -> int:
    """The operations of every matrix product, convolution and attention that `work` runs.

    Elementwise operations are not counted: they cost memory traffic, not arithmetic.
    """
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        work()
    return counter.get_total_flops()


def _convolution_backward(
    deltas: Sequence[int],
    inputs: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    # Torch's own formula takes every pair of channels to meet, whatever the groups.
    walked = inputs if transposed else deltas
    once = 2 * prod(weight) * walked[0] * prod(walked[2:])
    return once * (bool(wanted[0]) + bool(wanted[1]))


def _attention(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    deltas: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    return sdpa_backward_flop_count(deltas, query, key, value)


_FORMULAS = {
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
