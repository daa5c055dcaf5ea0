"""Other tensors in the places of a model's own, for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module


@contextmanager
def exchanged(
    model: Module, tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> Iterator[None]:
    """Have the model compute with other tensors in the stead of its parameters and buffers.

    Unlike `torch.func.functional_call`, which leaves the other tensors in a module that the model
    holds under two names.

    Args:
        model: Every place of a tensor is found, tied ones too.
        tensors: Parameters or buffers, by name.
        others: What stands in for each of them.

    Raises:
        TypeError: A module does not let its parameters be exchanged, as scripted ones do not.
    """
    by_id = {id(tensors[name]): other for name, other in others.items()}
    places: list[tuple[Any, str, Any]] = [
        (holder, key, tensor)
        for module in model.modules()
        for holder in (module._parameters, module._buffers)
        for key, tensor in holder.items()
        if id(tensor) in by_id
    ]
    if any(not isinstance(holder, dict) for holder, _, _ in places):
        raise TypeError("a scripted module does not let its parameters be exchanged")
    try:
        for holder, key, tensor in places:
            holder[key] = by_id[id(tensor)]
        yield
    finally:
        for holder, key, tensor in places:
            holder[key] = tensor
