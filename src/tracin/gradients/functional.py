"""The per-example losses as a pure function of parameters, for torch.func."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel

from tracin.data import Batch
from tracin.data.batches import Entries, leaves, mapped
from tracin.errors import UnsupportedModelError
from tracin.gradients.compute import Compute
from tracin.gradients.exchange import exchanged
from tracin.losses import losses_in
from tracin.sharding import is_dtensor


def losses_of(
    model: Module, compute: Compute, parameters: Mapping[str, Tensor]
) -> Callable[[Mapping[str, Tensor], Batch], Tensor]:
    """A function of (tensors by name, batch) that gives the losses: [examples].

    Args:
        model: In eval mode.
        compute: The per-example loss.
        parameters: In whose stead the tensors are used, by name.
    """

    def losses(others: Mapping[str, Tensor], batch: Batch) -> Tensor:
        with exchanged(model, parameters, others):
            outcome = compute(model, batch)
        return losses_in(outcome)

    return losses


def math_attention() -> AbstractContextManager[Any]:
    """Attention from plain matrix products: the fused kernels have no forward-mode rule."""
    return sdpa_kernel(SDPBackend.MATH)


def refuse_sharded(parameters: Mapping[str, Tensor]) -> None:
    """Sharded parameters give wrong results under torch.func, without an error.

    Raises:
        UnsupportedModelError: A parameter is a DTensor, as FSDP2 and tensor parallelism make them.
    """
    sharded = [name for name, parameter in parameters.items() if is_dtensor(parameter)]
    if sharded:
        raise UnsupportedModelError(
            "vmap, jvp and one backward pass per example are silently wrong under DTensor "
            f"parameters, and '{sharded[0]}' is one (with {len(sharded) - 1} more). Gather "
            "the model on one device first, for example "
            "with torch.distributed.checkpoint.state_dict.get_model_state_dict(..., "
            "full_state_dict=True) into an unsharded copy."
        )


def columns(batch: Batch) -> tuple[list[Tensor], Callable[[list[Tensor]], Batch]]:
    """The tensors of a batch that hold examples, and how to put others in their places.

    Raises:
        RuntimeError: The batch holds examples in lists or arrays, which vmap does not take apart.
    """
    for path, leaf in leaves(batch):
        if isinstance(leaf, Entries | np.ndarray):
            raise RuntimeError(f"vmap takes tensors apart alone, and batch{path} is none")
    tensors = [leaf for _, leaf in leaves(batch) if _is_column(leaf)]

    def filled(values: list[Tensor]) -> Batch:
        left = iter(values)
        return mapped(lambda leaf: next(left) if _is_column(leaf) else leaf, batch)

    return tensors, filled


def _is_column(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0
