"""What a batch is: tensors, examples first, in any nest of tuples, lists and mappings.

Everything behind the door walks batches with these few functions and never looks inside one.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tracin.errors import DataError

Batch = Any
"""A tensor, or a tuple, list or mapping of batches; tensors have the examples first.

Tensors without dimensions belong to all examples; so does whatever is no tensor, but for a list
of texts with one text an example (torch's own collate makes those), which goes with the tensors.
"""


def is_texts(value: object) -> bool:
    """Whether `value` is a list of texts: one column, not a nest of single values."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(text, str | bytes) for text in value)
    )


def leaves(batch: Batch, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with the path that leads to it, such as `['inputs'][0]`."""
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(batch, list | tuple) and not is_texts(batch):
        for position, value in enumerate(batch):
            yield from leaves(value, f"{path}[{position}]")
    else:
        yield path, batch


def mapped(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """The same nest with `function(leaf)` in place of every leaf; `batch` itself is not changed."""
    if isinstance(batch, Mapping):
        return _like(batch, {key: mapped(function, value) for key, value in batch.items()})
    if isinstance(batch, list | tuple) and not is_texts(batch):
        values = [mapped(function, value) for value in batch]
        if isinstance(batch, list):
            return values
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)
    return function(batch)


def _like(mapping: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    """`values` as the kind of mapping that came, where that kind can be made from a dict."""
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

    Raises:
        DataError: it holds no tensor with an example dimension, or its tensors disagree.

    Example:
        >>> import torch
        >>> length((torch.zeros(3, 2), {"labels": torch.zeros(3)}))
        3
    """
    first: tuple[str, int] | None = None
    for path, leaf in leaves(batch):
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            continue
        if first is None:
            first = path, leaf.shape[0]
        elif leaf.shape[0] != first[1]:
            raise DataError(
                "All tensors of a batch have the examples first, so their first sizes are equal, "
                f"but batch{first[0]} has {first[1]} and batch{path} has {leaf.shape[0]}. "
                "Make every tensor [examples, ...]."
            )
    if first is None:
        raise DataError(
            "A batch is a tensor, or a tuple, list or mapping of tensors with the examples first, "
            f"but this {type(batch).__name__} holds no such tensor. Give a collate_fn that "
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
    return [
        (path, (leaf.dtype, tuple(leaf.shape[1:])) if isinstance(leaf, Tensor) else leaf)
        for path, leaf in leaves(batch)
    ]


def part(batch: Batch, index: slice | Tensor | list[int]) -> Batch:
    """The examples of `batch` that `index` picks, in its order.

    A slice gives views, a list or tensor gives copies, as torch does.

    Args:
        batch: any batch.
        index: a slice, positions, or one boolean an example.

    Example:
        >>> import torch
        >>> part({"labels": torch.tensor([5, 6, 7])}, [2, 0])
        {'labels': tensor([7, 5])}
    """
    examples = length(batch)

    def pick(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            if leaf.dim() == 0:
                return leaf
            return leaf[index.to(leaf.device) if isinstance(index, Tensor) else index]
        if is_texts(leaf) and len(leaf) == examples:
            on_cpu = index.cpu() if isinstance(index, Tensor) else index
            return [leaf[position] for position in torch.arange(examples)[on_cpu].tolist()]
        return leaf

    return mapped(pick, batch)


def move(batch: Batch, device: torch.device | str) -> Batch:
    """`batch` with its tensors on `device`; whatever is no tensor stays as it is.

    Example:
        >>> import torch
        >>> move((torch.ones(2), "kept"), "cpu")
        (tensor([1., 1.]), 'kept')
    """
    return mapped(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
