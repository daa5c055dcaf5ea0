"""Gradients written out, by vmap or by one backward pass per example, block by block."""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.errors import TracInError
from tracin.gradients.compute import Compute
from tracin.gradients.forms import Dense
from tracin.gradients.loop import loop_gradients
from tracin.gradients.traced_model import TracedModel
from tracin.gradients.visit import Visit
from tracin.gradients.vmapped import vmap_gradients
from tracin.out_of_memory import is_out_of_memory

# Numbers in one block of written-out gradients: 128 MB in float32.
MAX_BLOCK_NUMEL = 1 << 25

# (model, compute, batch, parameters) -> each parameter's gradients, [examples, *its shape].
SlowMethod = Callable[[Module, Compute, Batch, Mapping[str, Tensor]], dict[str, Tensor]]


def slow_pass(
    traced: TracedModel,
    gradients_of: SlowMethod,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    visit: Visit,
) -> None:
    """Hand the gradients of `parameters` on a batch to `visit`, as many examples as fit a block."""
    numbers = sum(parameter.numel() for parameter in parameters.values())
    step = max(1, MAX_BLOCK_NUMEL // max(1, numbers))
    for start in range(0, length(batch), step):
        block = part(batch, slice(start, start + step))
        gradients = gradients_of(traced.model, traced.compute, block, parameters)
        for name in parameters:
            visit(name, Dense(gradients.pop(name)), start)


def vmap_or_loop(
    model: Module, compute: Compute, batch: Batch, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """By vmap, unless this batch takes a path that vmap does not know."""
    try:
        return vmap_gradients(model, compute, batch, parameters)
    except TracInError:
        raise
    except Exception as error:  # torch raises all kinds here; a loop is exact as well
        if is_out_of_memory(error):
            raise
        return loop_gradients(model, compute, batch, parameters)
