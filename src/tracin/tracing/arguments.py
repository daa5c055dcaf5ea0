"""What a Tracer is given, checked at the door."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import get_world_size
from torch.nn import DataParallel, Module
from torch.nn.parallel import DistributedDataParallel

from tracin.errors import TracingError, UnsupportedModelError
from tracin.tracing.paths import Quadrature
from tracin.wrappers import unwrapped


def traceable_model(model: Module) -> Module:
    """The model inside a wrapper that passes whole batches on, in one process."""
    is_divided = isinstance(model, DataParallel) and len(model.device_ids) > 1
    is_parallel = isinstance(model, DistributedDataParallel) and get_world_size() > 1
    if is_divided or is_parallel or hasattr(model, "_orig_mod"):
        kind = type(model).__name__
        raise UnsupportedModelError(
            f"The model is wrapped in {kind}, within which a step's examples cannot be seen. Trace "
            "the model itself, uncompiled, in one process."
        )
    return unwrapped(model)


def checked_paths(paths: Sequence[Quadrature]) -> tuple[Quadrature, ...]:
    """Each path once."""
    if not paths or not all(isinstance(path, Quadrature) for path in paths):
        raise TracingError(
            "paths are some of tracin.tracing.Quadrature, such as "
            f"[tracin.tracing.Quadrature.TRAPEZOID]; {paths!r} was given."
        )
    return tuple(dict.fromkeys(paths))


def checked_weights(weights: Tensor, examples: int) -> Tensor:
    """The weights of a batch's examples: [examples], float64 on the CPU."""
    checked = torch.as_tensor(weights).detach().cpu().double().flatten()
    if checked.shape != (examples,) or not bool((checked > 0).all()):
        raise TracingError(f"weights needs one number above 0 for each of the {examples} ids.")
    return checked


def refuse_closure(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """A step must be made of the gradients that are there when it begins."""
    closures = (*args[1:], kwargs.get("closure"))
    if any(closure is not None for closure in closures):
        raise TracingError(
            "optimizer.step(closure) runs its backward passes where the Tracer cannot tell which "
            "of them make up the step. Call loss.backward() first and then optimizer.step() "
            "without a closure."
        )
