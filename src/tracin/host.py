"""Brings numbers from a device to the host, and waits for the device once for all of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The kinds of devices whose numbers the host reads without waiting.
LOCAL = frozenset({"cpu"})


def is_remote(device: torch.device) -> bool:
    """Whether the host has to wait before it can read what lies there.

    Example:
        >>> is_remote(torch.device("cpu"))
        False
    """
    return device.type not in LOCAL


def to_host(
    tensors: Sequence[Tensor | None], meanwhile: Callable[[], None] | None = None
) -> list[Tensor | None]:
    """The same numbers on the host, outside of any graph; what lies there is not copied.

    Args:
        tensors: Tensors, on one device or the host; None stays None.
        meanwhile: What to do before waiting, while the device computes; not called where nothing
            has to be waited for.

    Example:
        >>> to_host([torch.ones(2), None])
        [tensor([1., 1.]), None]
    """
    plain = [None if each is None else each.detach() for each in tensors]
    if not any(each is not None and is_remote(each.device) for each in plain):
        return plain
    return _brought(plain, meanwhile)


def _brought(
    tensors: Sequence[Tensor | None], meanwhile: Callable[[], None] | None
) -> list[Tensor | None]:
    devices = {each.device for each in tensors if each is not None and each.is_cuda}
    if meanwhile is not None and not devices:
        meanwhile()
    # Into pinned memory, which torch takes for such copies: they run while the host goes on.
    found = [
        None if each is None else each.contiguous().to("cpu", non_blocking=each.is_cuda)
        for each in tensors
    ]
    if meanwhile is not None and devices:
        meanwhile()
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return found
