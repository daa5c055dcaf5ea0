"""One ordinary backward pass per example: exact for whatever can be trained."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.gradients.fast import Compute
from tracin.gradients.forms import Dense
from tracin.gradients.functional import refuse_sharded
from tracin.gradients.ledger import Visit
from tracin.gradients.reference import weighted_gradients


def loop_pass(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    visit: Visit,
) -> None:
    """Hand the per-example gradients of `parameters` on a batch to `visit`, written out.

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
    for name, gradients in rows.items():
        visit(name, Dense(torch.stack(gradients)))
