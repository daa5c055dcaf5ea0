"""Calls that may reorder examples, by what they find in the data.

A layout learned on copies of one example says where examples lie, not in which order. Sorting,
routing and packing move them, so what comes out of such a call is no longer trusted: parameters
that meet it get a slower, exact method. Only calls that touch the dimension of the examples count.
Which one that is was learned in the trial; where a batch takes another path than the trial did, it
may be any that the number of examples divides.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.gradients.arguments import tensors_in
from tracin.torch_internals import is_functorch_wrapped_tensor

Shapes = Sequence[tuple[int, ...]]


@final
@dataclass(frozen=True)
class ReorderingCall:
    """One such call of the trial: the dimension of the examples in each tensor that goes in."""

    func: Callable[..., Any]
    dims: tuple[int | None, ...]
    ndims: tuple[int, ...]


def is_judged(func: Callable[..., Any]) -> bool:
    """Whether this function may reorder examples."""
    return func in _JUDGES


def learn_judged(
    few: Sequence[tuple[Callable[..., Any], Shapes]],
    more: Sequence[tuple[Callable[..., Any], Shapes]],
) -> list[ReorderingCall]:
    """Compare the calls of two runs with different numbers of copies of one example."""
    judged: list[ReorderingCall] = []
    for (func, one), (other_func, other) in zip(few, more, strict=False):
        ranks = tuple(len(shape) for shape in other)
        if func is not other_func or ranks != tuple(len(shape) for shape in one):
            break
        judged.append(
            ReorderingCall(
                func, tuple(_grown(*pair) for pair in zip(one, other, strict=True)), ranks
            )
        )
    return judged


def _grown(one: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    grown = [dim for dim, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    return grown[0] if grown else None


@final
class Reordering:
    """Judges the calls of one pass, one after the other."""

    def __init__(self, trial: Sequence[ReorderingCall], examples: int) -> None:
        self._trial = trial
        self._examples = examples
        self._at = 0
        self._is_alike = True

    def judges(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> bool:
        """Whether this call may put one example's numbers in another's place, or lose some."""
        judge = _JUDGES.get(func)
        if judge is None:
            return False
        known = self._known(func, args, kwargs)
        return self._examples > 1 and judge(args, kwargs, BatchDim(self._examples, known))

    def writes_elsewhere(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> bool:
        """Whether a call writes rows, as many for each example, to places that an index names."""
        written = next(
            (kwargs[name] for name in ("source", "src", "values") if name in kwargs), None
        )
        if written is None and args:
            written = args[-1] if isinstance(args[-1], Tensor) else None
        is_row_each = (
            isinstance(written, Tensor)
            and written.ndim > 0
            and len(written) > 0
            and len(written) % self._examples == 0
        )
        if self._examples < 2 or not is_row_each:
            return False
        batch_dim = BatchDim(self._examples, {})
        target, place = args[0], args[1] if len(args) > 1 else None
        if isinstance(place, int):
            index = kwargs.get("index", args[2] if len(args) > 2 else None)
            is_in_order = _is_count(index, self._examples, 0)
            return not is_in_order and batch_dim.holds(target, [place], alike=True)
        if isinstance(place, list) and func is not Tensor.__setitem__:
            place = tuple(place)
        return _getitem((target, place), {}, batch_dim)

    def _known(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[int, int | None]:
        """What the trial says of these tensors, as long as this pass makes the same calls."""
        if not self._is_alike:
            return {}
        tensors = list(tensors_in(args, kwargs))
        if self._at == len(self._trial):
            self._is_alike = False
            return {}
        call = self._trial[self._at]
        self._at += 1
        ranks = tuple(tensor.ndim for tensor in tensors)
        if call.func is not func or call.ndims != ranks:
            self._is_alike = False
            return {}
        return {id(tensor): dim for tensor, dim in zip(tensors, call.dims, strict=True)}


@final
@dataclass(frozen=True)
class BatchDim:
    """What is known of where the examples are in the tensors of one call."""

    examples: int
    known: Mapping[int, int | None]

    def holds(self, tensor: Tensor, dims: Iterable[int], *, alike: bool = False) -> bool:
        """Whether one of these dimensions may be that of the examples.

        Args:
            tensor: One of the call's tensors.
            dims: The dimensions that the call reorders or picks from.
            alike: Where nothing is known, count any dimension exactly as long as the examples,
                apart from the first that they divide.
        """
        dims = {dim % tensor.ndim for dim in dims} if tensor.ndim else set()
        if id(tensor) in self.known:
            return self.known[id(tensor)] in dims
        sizes = tensor.shape
        divided = (dim for dim, size in enumerate(sizes) if size and size % self.examples == 0)
        return next(divided, None) in dims or (
            alike and any(sizes[dim] == self.examples for dim in dims)
        )

    def may_hold(self, tensor: Tensor, dim: int) -> bool:
        """Whether this one dimension may be that of the examples."""
        if id(tensor) in self.known:
            return self.known[id(tensor)] == dim % max(1, tensor.ndim)
        size = tensor.shape[dim]
        return bool(size) and size % self.examples == 0


def puts_back(func: Callable[..., Any]) -> bool:
    """Whether a call's output lies as its first argument does, whatever is put into it."""
    return func in _PUTTING_BACK


def _always(args: Sequence[Any], kwargs: Mapping[str, Any], batch_dim: BatchDim) -> bool:
    return True


def _along_dim(place: int, default: int | None) -> Callable[..., bool]:
    """A judge of calls that reorder one dimension, given as their argument number `place`."""

    def judge(args: Sequence[Any], kwargs: Mapping[str, Any], batch_dim: BatchDim) -> bool:
        dim = kwargs.get("dim", args[place] if len(args) > place else default)
        tensor = args[0] if args else kwargs.get("input")
        if not isinstance(tensor, Tensor) or dim is None:
            return True
        dims = [dim] if isinstance(dim, int) else list(dim)
        return batch_dim.holds(tensor, dims, alike=True)

    return judge


def _split(args: Sequence[Any], kwargs: Mapping[str, Any], batch_dim: BatchDim) -> bool:
    tensor, dim = args[0], kwargs.get("dim", args[-1] if len(args) > 2 else 0)
    if not isinstance(dim, int):
        dim = 0
    return batch_dim.holds(tensor, [dim])


def _unbind(args: Sequence[Any], kwargs: Mapping[str, Any], batch_dim: BatchDim) -> bool:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    return batch_dim.holds(args[0], [dim])


def _getitem(args: Sequence[Any], kwargs: Mapping[str, Any], batch_dim: BatchDim) -> bool:
    tensor = args[0]
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    given = sum(_width(each) for each in index)
    dim = 0
    for place, each in enumerate(index):
        if each is None:
            continue
        if each is Ellipsis:
            dim += tensor.ndim - given
            continue
        if isinstance(each, Tensor | list | np.ndarray) and not _is_count(
            each, batch_dim.examples, place
        ):
            dims = range(dim, dim + _width(each))
            if batch_dim.holds(tensor, dims, alike=True):
                return True
        picks = isinstance(each, int | slice) and not _is_whole(each, tensor.shape[dim])
        if picks and batch_dim.holds(tensor, [dim]):
            return True
        dim += _width(each)
    return False


def _width(index: Any) -> int:
    """How many dimensions an index takes up."""
    if index is None or index is Ellipsis:
        return 0
    is_mask = isinstance(index, Tensor | np.ndarray) and index.dtype in (torch.bool, np.bool_)
    return index.ndim if is_mask else 1


def _is_whole(index: Any, size: int) -> bool:
    return isinstance(index, slice) and index.indices(size) == (0, size, 1)


def _is_count(index: Any, examples: int, place: int) -> bool:
    """hidden[arange(examples), last]: one row per example, in order."""
    if place != 0 or not isinstance(index, Tensor) or index.dtype == torch.bool:
        return False
    if index.numel() != examples or is_functorch_wrapped_tensor(index):
        return False
    if index.shape[0] != examples and index.ndim > 1:
        return False
    return bool((index.flatten() == torch.arange(examples, device=index.device)).all())


def _matmul(args: Sequence[Any], kwargs: Mapping[str, Any], batch_dim: BatchDim) -> bool:
    """Data times data: a permutation matrix would mix examples, attention keeps them apart."""
    left, right = args[0], args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("mat2"))
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return True
    if right.ndim < 2 or left.ndim < 2:
        return False
    if not (batch_dim.may_hold(left, left.ndim - 1) or batch_dim.may_hold(right, right.ndim - 2)):
        return False
    if id(left) in batch_dim.known:
        return True
    batch = [(each, dim) for each in (left, right) for dim in range(each.ndim - 2)]
    return not any(batch_dim.may_hold(each, dim) for each, dim in batch)


def _einsum(args: Sequence[Any], kwargs: Mapping[str, Any], batch_dim: BatchDim) -> bool:
    equation = args[0]
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        return False
    inputs, output = equation.replace(" ", "").split("->")
    operands = args[1] if isinstance(args[1], list | tuple) else args[1:]
    held: set[str] = set()
    for letters, tensor in zip(inputs.split(","), operands, strict=False):
        held |= {each for dim, each in enumerate(letters) if batch_dim.may_hold(tensor, dim)}
    return bool(held - set(output)) and not held & set(output)


def _where(args: Sequence[Any], kwargs: Mapping[str, Any], batch_dim: BatchDim) -> bool:
    return len(args) == 1 and not kwargs  # the form that returns positions


def _lookup(args: Sequence[Any], kwargs: Mapping[str, Any], batch_dim: BatchDim) -> bool:
    table = args[1] if len(args) > 1 else kwargs.get("weight")
    return isinstance(table, Tensor) and batch_dim.holds(table, [0], alike=True)


def _repeat_interleave(args: Sequence[Any], kwargs: Mapping[str, Any], batch_dim: BatchDim) -> bool:
    repeats = args[1] if len(args) > 1 else kwargs.get("repeats")
    return not isinstance(repeats, int)


_JUDGES: dict[Callable[..., Any], Callable[..., bool]] = {
    Tensor.__getitem__: _getitem,
    torch.where: _where,
    Tensor.where: _where,
    F.embedding: _lookup,
    torch.einsum: _einsum,
    torch.repeat_interleave: _repeat_interleave,
    Tensor.repeat_interleave: _repeat_interleave,
}
for _name, _judge in {
    "masked_select": _always,
    "nonzero": _always,
    "unique": _always,
    "take": _always,
    "rot90": _always,
    "gather": _along_dim(1, None),
    "take_along_dim": _along_dim(2, None),
    "index_select": _along_dim(1, None),
    "sort": _along_dim(1, -1),
    "argsort": _along_dim(1, -1),
    "topk": _along_dim(2, -1),
    "flip": _along_dim(1, None),
    "fliplr": _along_dim(9, 1),
    "flipud": _along_dim(9, 0),
    "roll": _along_dim(2, None),
    "split": _split,
    "tensor_split": _split,
    "chunk": _split,
    "unbind": _unbind,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "narrow": _along_dim(1, None),
    "select": _along_dim(1, None),
}.items():
    for _owner in (torch, Tensor):
        if hasattr(_owner, _name):
            _JUDGES[getattr(_owner, _name)] = _judge

_PUTTING_BACK = frozenset(
    getattr(owner, name)
    for owner in (torch, Tensor)
    for name in (
        "index_add", "index_add_", "index_copy", "index_copy_", "index_put", "index_put_",
        "scatter", "scatter_", "scatter_add", "scatter_add_", "masked_scatter",
        "masked_scatter_", "__setitem__",
    )
    if hasattr(owner, name)
)  # fmt: skip
