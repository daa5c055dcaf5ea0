"""Stands in for a GPU on a machine without one: counts where the host would wait for the device.

What is marked as lying on the device, and all that is computed from it, is followed through every
call of torch. Reading a number of it, copying it to the host, or asking for a size that its numbers
decide would wait for the device, and so would a copy of ordinary memory to it.
"""

import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tracin import host
from tracin.data import batches
from tracin.torch_internals import is_functorch_wrapped_tensor

aten = torch.ops.aten
# What the host has to know before it can go on.
READ = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.equal,
    aten.masked_select,
    aten._unique2,
    aten.bincount,
}


class _Places:
    """The memory that lies on the device, and the waits that were counted."""

    def __init__(self) -> None:
        self._there: dict[int, StorageWeakRef] = {}
        self.waits: Counter[str] = Counter()

    def mark(self, tensor: Tensor) -> None:
        reference = StorageWeakRef(tensor.untyped_storage())
        self._there[reference.cdata] = reference

    def holds(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or is_functorch_wrapped_tensor(value):
            return False
        reference = self._there.get(value.untyped_storage()._cdata)
        return reference is not None and not reference.expired()

    def wait(self, what: str) -> None:
        frames = [each for each in traceback.extract_stack() if "/tracin/" in each.filename]
        where = frames[-1] if frames else traceback.extract_stack()[-3]
        file = where.filename.rpartition("/tracin/")[2]
        self.waits[f"{what} at {file}:{where.lineno}"] += 1


class _Numbers(TorchDispatchMode):
    """Below autograd: follows memory, and counts reads."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self._places = places

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        places = self._places
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if not any(map(places.holds, tensors)):
            return func(*args, **kwargs)
        kind = func.overloadpacket
        if kind in READ:
            places.wait(str(kind))
        if kind is aten.copy_:
            if not (places.holds(args[0]) and places.holds(args[1])):
                places.wait("copy")
            return func(*args, **kwargs)
        if kind in (aten.index, aten.index_put_, aten.index_put):
            indices = [each for each in args[1] if each is not None]
            is_filled = kind is not aten.index and args[2].numel() == 1
            if any(each.dtype == torch.bool for each in indices) and not is_filled:
                places.wait("mask")
            if not all(map(places.holds, indices)):
                places.wait("index")
        found = func(*args, **kwargs)
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                places.mark(each)
        return found


class _Moves(TorchFunctionMode):
    """Above autograd: what does not copy on a CPU, and would between a device and the host."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        places = self._places
        one = args[0] if args else None
        if func is Tensor.tolist and places.holds(one):
            places.wait("tolist")
        if func is Tensor.cpu and isinstance(one, Tensor) and places.holds(one):
            places.wait("cpu")
            return self._apart(one)
        if func is Tensor.to and isinstance(one, Tensor):
            other = args[1] if len(args) > 1 else None
            if isinstance(other, Tensor) and places.holds(one) != places.holds(other):
                places.wait("to")
                found = self._apart(func(*args, **kwargs))
                if places.holds(other):
                    places.mark(found)
                return found
        found = func(*args, **kwargs)
        is_made_there = kwargs.get("device") is not None and isinstance(found, Tensor)
        if is_made_there and not any(isinstance(each, Tensor) for each in args):
            places.mark(found)
        return found

    def _apart(self, tensor: Tensor) -> Tensor:
        """A copy in memory of its own, that is not on the device."""
        plain = tensor.detach()
        out = torch.empty(plain.shape, dtype=plain.dtype)
        if out.numel():
            out.numpy()[...] = plain.numpy()
        return out


@contextmanager
def pretend_device(patch: pytest.MonkeyPatch, *tensors: Tensor) -> Iterator[Counter[str]]:
    """Take all devices for remote ones, and these tensors for ones that lie there.

    Yields:
        Where the host would have waited, and how often: filled while the block runs.
    """
    places = _Places()
    for each in tensors:
        places.mark(each)

    def moved(leaf: Any, device: Any) -> Any:
        if isinstance(leaf, Tensor) and not places.holds(leaf):
            leaf = leaf.clone()
            places.mark(leaf)
        return leaf

    def to_host(given: Sequence[Tensor | None], meanwhile: Any = None) -> list[Tensor | None]:
        if any(map(places.holds, given)):
            places.wait("to_host")
        if meanwhile is not None:
            meanwhile()
        return [
            moves._apart(one) if one is not None and places.holds(one) else one for one in given
        ]

    moves = _Moves(places)
    patch.setattr(batches, "_moved", moved)
    patch.setattr(host, "LOCAL", frozenset())
    patch.setattr(host, "_brought", to_host)
    with moves, _Numbers(places):
        yield places.waits
