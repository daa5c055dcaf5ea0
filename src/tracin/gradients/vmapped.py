"""Per-example gradients by torch.func: exact where vmap is, for parameters without a rule."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import Module

from tracin.data import Batch
from tracin.gradients.batching import quiet_batching
from tracin.gradients.checkpointing import watched_checkpoints
from tracin.gradients.compute import Compute
from tracin.gradients.functional import columns, losses_of, math_attention, refuse_sharded


def vmap_gradients(
    model: Module, compute: Compute, batch: Batch, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The gradients of each parameter, written out: [examples, *its shape].

    Raises:
        UnsupportedModelError: The parameters are sharded: vmap would be silently wrong.
        RuntimeError: vmap does not know an operation of the model; torch says which.
    """
    refuse_sharded(parameters)
    losses = losses_of(model, compute, parameters)
    tensors, filled = columns(batch)

    def one(parameters: dict[str, Tensor], *example: Tensor) -> Tensor:
        return losses(parameters, filled([tensor.unsqueeze(0) for tensor in example]))[0]

    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    with torch.no_grad(), math_attention(), quiet_batching(), watched_checkpoints():
        each = vmap(grad(one), in_dims=(None, *(0,) * len(tensors)))
        return each(detached, *tensors)
