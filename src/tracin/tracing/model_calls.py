"""The calls of the model in a traced block, copied so that the audit can repeat them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module

from tracin.data import Batch, content_of
from tracin.data.batches import mapped
from tracin.gradients.compute import Compute


@final
@dataclass(frozen=True, eq=False)
class ModelCall:
    """One call of the model in a traced block, to be repeated.

    Attributes:
        args: Copies of what it was given by position.
        kwargs: Copies of what it was given by name.
        autocast: The dtype of mixed precision; None where it was off.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    autocast: torch.dtype | None


Run = Callable[[Mapping[str, Tensor]], Any]  # with these parameters in the model -> its outputs


@contextmanager
def captured_calls(model: Module, calls: list[ModelCall]) -> Iterator[None]:
    """Take copies of what the model is called with."""

    def take(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        device = next(model.parameters()).device.type
        is_on = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_on else None
        calls.append(ModelCall(mapped(_copy, args), mapped(_copy, kwargs), dtype))

    # First of all hooks: others may change the inputs, and will do so again.
    handle = model.register_forward_pre_hook(take, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def repeated_calls(model: Module, calls: list[ModelCall]) -> Run:
    """The calls of a block once more."""

    def run(parameters: Mapping[str, Tensor]) -> Any:
        device = next(iter(parameters.values())).device.type
        outputs = []
        for call in calls:
            # Copies again: a model may write into its inputs, and there are two passes.
            args, kwargs = mapped(_copy, call.args), mapped(_copy, dict(call.kwargs))
            with torch.autocast(device, call.autocast, enabled=call.autocast is not None):
                outputs.append(functional_call(model, dict(parameters), args, kwargs))
        return outputs

    return run


def repeated_losses(model: Module, compute: Compute, batch: Batch) -> Run:
    """The per-example losses of a batch."""

    def run(parameters: Mapping[str, Tensor]) -> Any:
        class Swapped(Module):
            """The model with other parameters, for a loss that calls it."""

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return functional_call(model, dict(parameters), args, kwargs)

            def __getattr__(self, name: str) -> Any:
                return getattr(model, name)

        return compute(Swapped(), content_of(batch))

    return run


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
