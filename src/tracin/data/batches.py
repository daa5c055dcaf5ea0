"""What a batch is: tensors, examples first, in any nest of tuples, lists and mappings.

All other code walks batches by these few functions and never looks inside one.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from tracin.errors import DataError
from tracin.plain_text import a_kind

Batch = Any
"""A tensor or array, or a tuple, list or mapping of batches; the examples come first.

Tensors without dimensions belong to all examples. A list of anything but tensors (numbers, texts,
objects) has one entry per example; a list of texts of another length belongs to all. So does
whatever is neither.
"""


@final
class Entries(list[Any]):
    """A list with one entry per example, whatever the entries are: boxes of images, say."""


@final
class Shared(list[Any]):
    """A list that belongs to all examples, even where it is as long as there are examples."""


@final
@dataclass(frozen=True)
class Single:
    """One example in a form that has no example dimension: a graph, an image with its boxes.

    Attributes:
        content: What the data gave, and what a loss is called with.
    """

    content: Any


def content_of(batch: Batch) -> Any:
    """What a loss is called with."""
    return batch.content if isinstance(batch, Single) else batch


_NESTED = (Tensor, np.ndarray, Mapping, list, tuple)


def is_plain_list(value: Any) -> bool:
    """Whether `value` lists single values that are not tensors: a column, not a nest of them."""
    is_list = isinstance(value, list | tuple) and not isinstance(value, torch.Size)
    return (
        is_list
        and len(value) > 0
        and not hasattr(value, "_fields")
        and not any(isinstance(entry, _NESTED) for entry in value)
    )


def is_texts(value: Any) -> bool:
    """Whether `value` is a list of texts."""
    return is_plain_list(value) and all(isinstance(text, str | bytes) for text in value)


def has_rows(leaf: object) -> bool:
    """Whether `leaf` is a tensor or array with dimensions, of which the examples are the first."""
    return isinstance(leaf, Tensor | np.ndarray) and leaf.ndim > 0


_LEAVES = (Tensor, np.ndarray, Entries, Shared, torch.Size)
_NESTS = (Mapping, list, tuple)


def is_leaf(batch: Batch) -> bool:
    """Whether `batch` is not a nest of other batches."""
    if isinstance(batch, _LEAVES):
        return True
    return is_plain_list(batch) or not isinstance(batch, _NESTS)


def leaves(batch: Batch, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with the path that leads to it, such as `['inputs'][0]`."""
    if isinstance(batch, Tensor):
        yield path, batch
    elif isinstance(batch, Single):
        yield from leaves(batch.content, path)
    elif is_leaf(batch):
        yield path, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from leaves(value, f"{path}[{key!r}]")
    else:
        for position, value in enumerate(batch):
            yield from leaves(value, f"{path}[{position}]")


def mapped(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """The same nest with `function(leaf)` in place of every leaf; `batch` itself is not changed."""
    return mapped_with_paths(lambda _, leaf: function(leaf), batch)


def mapped_within(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """As `mapped`, for the leaves of each entry of a list, too."""

    def each(leaf: Any) -> Any:
        if isinstance(leaf, Entries):
            return Entries(mapped_within(function, entry) for entry in leaf)
        return function(leaf)

    return mapped(each, batch)


def mapped_with_paths(function: Callable[[str, Any], Any], batch: Batch, path: str = "") -> Batch:
    """As `mapped`, with `function(path, leaf)`."""
    if isinstance(batch, Tensor):
        return function(path, batch)
    if isinstance(batch, Single):
        return Single(mapped_with_paths(function, batch.content, path))
    if is_leaf(batch):
        return function(path, batch)
    return rebuilt(batch, lambda key, value: mapped_with_paths(function, value, f"{path}[{key!r}]"))


def rebuilt(nest: Any, function: Callable[[Any, Any], Any]) -> Any:
    """A mapping, list or tuple of the same kind, with `function(key, value)` for every value."""
    if isinstance(nest, Mapping):
        return _like(nest, {key: function(key, value) for key, value in nest.items()})
    values = [function(position, value) for position, value in enumerate(nest)]
    if isinstance(nest, list):
        return values
    return type(nest)(*values) if hasattr(nest, "_fields") else tuple(values)


def _like(mapping: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    """`values` as the kind of mapping that was given, where that kind can be made from a dict."""
    kind: Any = type(mapping)
    if kind is dict:
        return values
    try:
        made = kind(values)
        return made if set(made) == set(values) else values
    except Exception:  # a user's class may refuse a dict in any way it likes
        return values


def length(batch: Batch) -> int:
    """How many examples `batch` holds.

    Example:
        >>> import torch
        >>> length((torch.zeros(3, 2), {"labels": torch.zeros(3)}))
        3
    """
    if isinstance(batch, Single):
        return 1
    first: tuple[str, int] | None = None
    for path, leaf in leaves(batch):
        if not has_rows(leaf) and not isinstance(leaf, Entries):
            continue
        if first is None:
            first = path, len(leaf)
        elif len(leaf) != first[1]:
            raise DataError(
                "All tensors of a batch have the examples first, so their first sizes are equal, "
                f"but batch{first[0]} has {first[1]} and batch{path} has {len(leaf)}. "
                "Make every tensor [examples, ...]."
            )
    if first is None:
        raise DataError(
            "A batch is a tensor, or a tuple, list or mapping of tensors with the examples first, "
            f"but got {a_kind(batch)} without one. Give a collate_fn that "
            "returns tensors."
        )
    return first[1]


def structure(batch: Batch) -> list[tuple[str, Any]]:
    """What two batches share that take the same path: leaves by name, their kinds and shapes.

    Example:
        >>> import torch
        >>> structure((torch.zeros(3, 2), "kept"))
        [('[0]', (torch.float32, (2,))), ('[1]', 'kept')]
    """
    return [(path, _kind(leaf)) for path, leaf in leaves(batch)]


def _kind(leaf: Any) -> Any:
    if has_rows(leaf):
        return leaf.dtype, tuple(leaf.shape[1:])
    if isinstance(leaf, Tensor | np.ndarray):
        return leaf.dtype, ()
    # Comparing objects of unknown kinds may mean anything.
    return leaf if isinstance(leaf, str | bytes | int | float | None) else type(leaf)


def part(batch: Batch, index: slice | Tensor | list[int]) -> Batch:
    """The examples of `batch` that `index` picks, in its order.

    A slice gives views, a list or tensor gives copies, as torch does.

    Example:
        >>> import torch
        >>> part({"labels": torch.tensor([5, 6, 7])}, [2, 0])
        {'labels': tensor([7, 5])}
    """
    examples = length(batch)
    chosen = torch.arange(examples)[index.cpu() if isinstance(index, Tensor) else index].tolist()
    if isinstance(batch, Single):
        if chosen != [0]:
            raise DataError(
                f"A batch without an example dimension is one example, but {chosen} were picked."
            )
        return batch

    def pick(path: str, leaf: Any) -> Any:
        if has_rows(leaf):
            if isinstance(leaf, np.ndarray):
                return leaf[index if isinstance(index, slice) else chosen]
            return leaf[index.to(leaf.device) if isinstance(index, Tensor) else index]
        if isinstance(leaf, Shared) or not (isinstance(leaf, Entries) or is_plain_list(leaf)):
            return leaf
        if len(leaf) == examples:
            return Entries(leaf[position] for position in chosen)
        if is_texts(leaf):
            return leaf
        raise unlike_list(path, len(leaf), examples)

    return mapped_with_paths(pick, batch)


def unlike_list(path: str, entries: int, examples: int, name: str = "batch") -> DataError:
    """A list that has another length than there are examples."""
    return DataError(
        f"A list in a batch has one entry per example, but {name}{path} has {entries} for "
        f"{examples} examples. Make it as long; what all examples share is a number, a text or a "
        "tensor without dimensions, or belongs to the model or the loss."
    )


def move(batch: Batch, device: torch.device | str) -> Batch:
    """`batch` with its tensors on `device`, and objects that know how to move (`.to(device)`).

    Example:
        >>> import torch
        >>> move((torch.ones(2), "kept"), "cpu")
        (tensor([1., 1.]), 'kept')
    """
    return mapped_within(lambda leaf: _moved(leaf, device), batch)


def _moved(leaf: Any, device: torch.device | str) -> Any:
    if not can_move(leaf):
        return leaf
    is_sent = type(leaf) is Tensor and leaf.device.type == "cpu" and leaf.layout is torch.strided
    if is_sent and torch.device(device).type == "cuda":
        # The host goes on while the copy runs; what reads it on the device waits for it. The memory
        # between is our own, pinned, and torch lends it to nobody before the copy has ended: a data
        # set may write its next batch to where this one is.
        return torch.empty_like(leaf, pin_memory=True).copy_(leaf).to(device, non_blocking=True)
    return leaf.to(device)


def can_move(leaf: object) -> bool:
    """Whether `leaf` has a `.to(device)`: tensors, and the batches of graph libraries."""
    return callable(getattr(leaf, "to", None)) and not isinstance(leaf, Module | type)


def copied(batch: Batch) -> Batch:
    """`batch` with tensors of its own, apart from any graph: for code that may write into them.

    Example:
        >>> import torch
        >>> given = torch.ones(2)
        >>> copied(given).zero_(), given
        (tensor([0., 0.]), tensor([1., 1.]))
    """

    def copy_of(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.detach().clone()
        if isinstance(leaf, np.ndarray):
            return leaf.copy()
        return copy.deepcopy(leaf) if can_move(leaf) else leaf

    return mapped_within(copy_of, batch)
