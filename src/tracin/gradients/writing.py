"""Calls that write into a batch, seen before they do: a batch nobody writes to is not copied.

What a watch cannot see (scripted code) still counts up the tensors' versions.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tracin.data import Batch
from tracin.data.batches import leaves, mapped
from tracin.gradients.arguments import tensors_in
from tracin.torch_internals import (
    OpOverload,
    OpOverloadPacket,
    is_functorch_wrapped_tensor,
    is_made_of_others,
)


class WritesError(Exception):
    """A call is about to write into the batch: give the model a copy."""


def shared(batch: Batch) -> Batch | None:
    """The same memory apart from any graph, or None for a batch with more than plain tensors."""
    for _, leaf in leaves(batch):
        if isinstance(leaf, Tensor):
            if type(leaf) is not Tensor or leaf.is_inference() or not _has_storage(leaf):
                return None
        elif not isinstance(leaf, str | bytes | int | float | None):
            return None
    return mapped(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, batch)


def storages(batch: Batch) -> frozenset[int]:
    """Where the tensors of a batch lie."""
    return frozenset(_place(leaf) for _, leaf in leaves(batch) if isinstance(leaf, Tensor))


def versions(batch: Batch) -> list[int]:
    """How often each tensor of a batch was changed in place, by torch."""
    return [leaf._version for _, leaf in leaves(batch) if isinstance(leaf, Tensor)]


def refuse_writes(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    kept: frozenset[int],
) -> None:
    """Raise before a call that may write into these storages.

    Raises:
        WritesError: It may.
    """
    # F.relu(x, True): whether anything is written depends on a flag.
    is_flagged = "out" in kwargs or any(each is True for each in (*args, *kwargs.values()))
    if not (is_flagged or _writes(func)):
        return
    for tensor in tensors_in(args, kwargs):
        if _has_storage(tensor) and _place(tensor) in kept:
            raise WritesError(getattr(func, "__name__", repr(func)))


@lru_cache(maxsize=4096)
def _writes(func: Callable[..., Any]) -> bool:
    if isinstance(func, OpOverload):
        return func._schema.is_mutable
    if isinstance(func, OpOverloadPacket):
        return func.__name__.endswith("_")
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name in _OPERATORS
    # What hands the memory itself out may be written to where no watch sees it.
    return name.endswith("_") or name in ("numpy", "data_ptr", "untyped_storage", "storage")


_OPERATORS = frozenset(
    f"__{name}__"
    for name in (
        "setitem", "iadd", "isub", "imul", "itruediv", "idiv", "ifloordiv", "imod", "ipow",
        "iand", "ior", "ixor", "ilshift", "irshift", "imatmul", "array", "dlpack",
        "cuda_array_interface", "set",
    )
)  # fmt: skip


def _has_storage(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and not tensor.is_nested
        and not is_functorch_wrapped_tensor(tensor)
        and not is_made_of_others(tensor)
    )


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
