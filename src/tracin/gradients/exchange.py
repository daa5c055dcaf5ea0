"""Other tensors in the places of a model's parameters, for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor
from torch.nn import Module


@contextmanager
def exchanged(
    model: Module, parameters: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> Iterator[None]:
    """Have the model compute with other tensors in its parameters' stead.

    Unlike `torch.func.functional_call`, which leaves the other tensors in a module that the model
    holds under two names.

    Args:
        model: Every place of a parameter is found, tied ones too.
        parameters: By name.
        others: What stands in for each of them.

    Raises:
        TypeError: A module does not let its parameters be exchanged, as scripted ones do not.
    """
    by_id = {id(parameters[name]): other for name, other in others.items()}
    places = [
        (module._parameters, key, parameter)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if id(parameter) in by_id
    ]
    if any(not isinstance(holder, dict) for holder, _, _ in places):
        raise TypeError("a scripted module does not let its parameters be exchanged")
    try:
        for holder, key, parameter in places:
            holder[key] = by_id[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for holder, key, parameter in places:
            holder[key] = parameter
