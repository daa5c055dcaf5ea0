"""One ordinary backward pass per example: exact for whatever can be trained."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.gradients.compute import Compute
from tracin.gradients.functional import refuse_sharded
from tracin.gradients.reference import weighted_gradients


def loop_gradients(
    model: Module, compute: Compute, batch: Batch, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The gradients of each parameter, written out: [examples, *its shape].

    Raises:
        UnsupportedModelError: The parameters are sharded: a backward pass averages over ranks.
    """
    refuse_sharded(parameters)
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for example in range(length(batch)):
        single = part(batch, slice(example, example + 1))
        gradients, _ = weighted_gradients(model, compute, single, parameters)
        for name, gradient in gradients.items():
            rows[name].append(gradient)
    # Each list goes as its stack is made, so that the gradients are not held twice.
    return {name: torch.stack(rows.pop(name)) for name in parameters}
