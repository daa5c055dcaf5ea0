"""How much memory a forward pass keeps for the way back."""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module

from tracin.data import Batch
from tracin.data.arrangement import is_strided
from tracin.gradients.compute import Compute
from tracin.sharding import local


def held_bytes(model: Module, compute: Compute, batch: Batch) -> int:
    """Bytes that one forward pass over a batch keeps, without the model's weights."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if is_strided(tensor):  # sparse and nested ones are inputs, which come one at a time
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
        # The tensor itself would be held by its own graph, in a cycle that nobody can collect.
        return tensor.detach()

    weights = {local(p).untyped_storage().data_ptr() for p in model.parameters()}
    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        compute(model, batch)
    return sum(size for pointer, size in saved.items() if pointer not in weights)
