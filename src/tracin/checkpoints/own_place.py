"""Which checkpoints can be written into the very memory of a model, so that it is held once.

On a device, the model's own numbers wait in the host's memory meanwhile. On the host nothing would
be gained: there the model's tensors point to what was read from a file.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import Module

from tracin.host import is_remote


def fits_own_place(
    model: Module, pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device | str | int | None
) -> bool:
    """Whether numbers can be written where the model's tensors have theirs.

    Args:
        model: The model.
        pairs: Its tensors, each with its new numbers.
        device: Where the numbers go; None for where the model is.
    """
    tensors = {id(one): one for one in (*model.parameters(), *model.buffers())}.values()
    # What is made of other tensors, as quantised weights are, stays as it is.
    ours = [one for one in tensors if type(one.data) is Tensor]
    goal = None if device is None else torch.empty(0, device=device).device
    if any(not is_remote(one.device) or goal not in (None, one.device) for one, _ in pairs):
        return False
    memory = {one.untyped_storage().data_ptr() for one in ours if one.numel()}
    # Numbers that are the model's own are read only if nothing is written over them before.
    return not _overlap(ours) and not any(
        values.numel()
        and values.device == one.device
        and values.untyped_storage().data_ptr() in memory
        and not _is_same_place(one, values)
        for one, values in pairs
    )


def _is_same_place(one: Tensor, other: Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


def _overlap(tensors: Iterable[Tensor]) -> bool:
    """Whether some numbers belong to two tensors, or twice to one."""
    spans = []
    for one in tensors:
        if one.numel():
            steps = zip(one.shape, one.stride(), strict=True)
            reach = 1 + sum((size - 1) * stride for size, stride in steps)
            if one.numel() > reach:
                return True
            spans.append((one.data_ptr(), one.data_ptr() + reach * one.element_size()))
    spans.sort()
    return any(stop > start for (_, stop), (start, _) in pairwise(spans))
