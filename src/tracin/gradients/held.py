"""How much memory a forward pass keeps for the way back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module

from tracin.data import Batch
from tracin.data.arrangement import is_strided
from tracin.gradients.arguments import tensors_in
from tracin.gradients.compute import Compute
from tracin.gradients.mode import Mode
from tracin.sharding import local_part
from tracin.torch_internals import inner_tensors


def held_bytes(model: Module, compute: Compute, batch: Batch) -> int:
    """Bytes that one forward pass over a batch keeps, without the model's weights."""
    return outcome_with_bytes(model, compute, batch)[1]


def outcome_with_bytes(model: Module, compute: Compute, batch: Batch) -> tuple[Any, int]:
    """What the loss returns for a batch, with a graph to look at, and the bytes that it keeps."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if is_strided(tensor):  # sparse and nested ones are inputs, which come one at a time
            for part in inner_tensors(tensor):
                storage = part.untyped_storage()
                saved[storage.data_ptr()] = storage.nbytes()
        # The tensor itself would be held by its own graph, in a cycle that nobody can collect.
        return tensor.detach()

    weights = {
        part.untyped_storage().data_ptr()
        for parameter in model.parameters()
        for part in inner_tensors(local_part(parameter))
    }
    try:
        with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
            outcome = compute(model, batch)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        # torch.func.grad refuses these hooks: count what every call makes, which is more.
        with torch.enable_grad(), _Made() as made:
            outcome = compute(model, batch)
        return outcome, made.bytes
    return outcome, sum(size for pointer, size in saved.items() if pointer not in weights)


class _Made(Mode):
    """Counts the bytes of what calls return."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.bytes += sum(
            tensor.numel() * tensor.element_size() for tensor in tensors_in((output,), {})
        )
        return output
