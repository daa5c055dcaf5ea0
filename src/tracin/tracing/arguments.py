"""What a Tracer is given, checked at the door."""

from collections.abc import Sequence
from typing import Any

from torch.distributed import get_world_size
from torch.nn import DataParallel, Module
from torch.nn.parallel import DistributedDataParallel

from tracin.errors import TracingError, UnsupportedModelError
from tracin.scoring.parameters import Selection
from tracin.tracing.paths import Quadrature
from tracin.wrappers import unwrapped


def traceable_model(model: Module) -> Module:
    """The model inside a wrapper that passes whole batches on, in one process.

    Raises:
        UnsupportedModelError: It is compiled, or wrapped for training on several devices.
    """
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
    """Each path once.

    Raises:
        TracingError: There is none, or one is not a Quadrature.
    """
    if not paths or not all(isinstance(path, Quadrature) for path in paths):
        raise TracingError(
            "paths are some of tracin.tracing.Quadrature, such as "
            f"[tracin.tracing.Quadrature.TRAPEZOID]; {paths!r} was given."
        )
    return tuple(dict.fromkeys(paths))


def selection_text(parameters: Selection) -> tuple[str, ...]:
    """Which parameters were chosen, as a trace's folder keeps it; nothing for all."""
    if parameters is None:
        return ()
    return (parameters,) if isinstance(parameters, str) else tuple(parameters)


def refuse_count(value: Any, name: str) -> None:
    """A count is a whole number of at least 1.

    Raises:
        TracingError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TracingError(f"{name} is a whole number of at least 1; {value!r} was given.")
