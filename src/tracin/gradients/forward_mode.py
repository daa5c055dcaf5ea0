"""The exact influence of one query on a whole batch by forward mode: no gradient is written out."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn import Module

from tracin.data import Batch
from tracin.gradients.checkpointing import watched_checkpoints
from tracin.gradients.compute import Compute
from tracin.gradients.functional import losses_of, math_attention, refuse_sharded


def jvp_scores(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    queries: Sequence[Mapping[str, Tensor]],
) -> Tensor:
    """The dot product of each example's gradient with each query's: [examples, queries].

    The derivative of the losses along a query's gradient is that product, for all examples at
    once and for any differentiable model.

    Args:
        model: In eval mode.
        compute: The per-example loss.
        batch: Examples first.
        parameters: Those that the queries' gradients are of.
        queries: One gradient a query, by parameter name.

    Raises:
        UnsupportedModelError: The parameters are sharded: forward mode would be silently wrong.
        RuntimeError: An operation of the model has no forward-mode rule; torch says which.
    """
    refuse_sharded(parameters)
    losses = losses_of(model, compute, parameters)
    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    scores = []
    with math_attention(), torch.no_grad(), watched_checkpoints():
        for query in queries:
            tangents = {name: query[name].to(detached[name]) for name in detached}
            scores.append(jvp(lambda p: losses(p, batch), (detached,), (tangents,))[1])
    return torch.stack(scores, 1)
