"""Columns as a user has them, tensors, arrays and lists, made ready to be cut into batches.

Arrays that torch can share memory with become tensors. Those that it cannot (read-only memory maps,
reversed or big-endian arrays) stay as they are, and only the batches cut from them are copied.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracin.data.arrangement import is_strided
from tracin.data.batches import (
    Batch,
    Entries,
    has_rows,
    is_plain_list,
    is_texts,
    leaves,
    rebuilt,
    unlike_list,
)
from tracin.errors import DataError
from tracin.plain_text import a_kind

# Libraries whose tables look like data, but find rows by label, or columns in their place.
_TABLES = frozenset({"pandas", "polars", "pyarrow"})


def checked_columns(columns: Batch, name: str) -> Batch:
    """`columns`, each checked to have one entry per example."""
    made = _columns(columns, _examples(columns), name, "")
    first: tuple[str, int] | None = None
    for path, leaf in leaves(made):
        if not has_rows(leaf):
            continue
        if first is None:
            first = path, len(leaf)
        elif len(leaf) != first[1]:
            raise DataError(
                f"The columns of {name} have one entry per example, so their first sizes are "
                f"equal, but {name}{first[0]} has {first[1]} and {name}{path} has "
                f"{len(leaf)}. Make them equal; if each tensor is one example, pass a "
                "Dataset or a list of (inputs, labels) pairs."
            )
    if first is None:
        raise DataError(
            f"{name} has to hold tensors with the examples first, but this "
            f"{type(columns).__name__} holds none: a tensor without dimensions has no examples."
        )
    return made


def as_tensor(leaf: Any) -> Any:
    """A piece of an array as a tensor of its own; all else as it is."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    native = leaf.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(leaf, dtype=native, order="C", copy=True))


def is_table(data: object) -> bool:
    """Whether `data` is a table or a column of a library of tables."""
    is_row = isinstance(data, tuple)  # of DataFrame.itertuples
    return type(data).__module__.partition(".")[0] in _TABLES and not is_row


def table_error(name: str, data: object) -> DataError:
    """What to make of a table."""
    kind = f"a {type(data).__module__.partition('.')[0]} {type(data).__name__}"
    if not hasattr(data, "columns"):
        return DataError(
            f"{name} is {kind}, whose entries are not found by position. Pass "
            "torch.tensor(column.to_numpy()), for inputs with dtype=torch.float32."
        )
    return DataError(
        f"{name} is {kind}, which does not say what is input and what is label. Make tensors of "
        'its columns, such as (torch.tensor(table[["age", "income"]].to_numpy(), '
        'dtype=torch.float32), torch.tensor(table["label"].to_numpy())).'
    )


def _columns(columns: Any, examples: int | None, name: str, path: str) -> Any:
    """The same nest with every column as it is cut."""
    if isinstance(columns, Tensor):
        return _tensor(columns, name, path)
    if isinstance(columns, np.ndarray):
        return _array(columns, name, path)
    is_list = isinstance(columns, list | tuple) and not isinstance(columns, torch.Size)
    if is_list and path and _is_listed(columns, examples, name, path):
        return Entries(columns)
    if is_list and is_texts(columns):
        return columns
    if is_list and is_plain_list(columns) and path and examples is not None:
        raise unlike_list(path, len(columns), examples, name)
    if isinstance(columns, Mapping) or is_list:
        return rebuilt(
            columns, lambda key, value: _columns(value, examples, name, f"{path}[{key!r}]")
        )
    if columns is None or isinstance(columns, bool | str | bytes):
        return columns
    if is_table(columns):
        raise table_error(f"{name}{path}", columns)
    raise DataError(
        f"A column of {name} is a tensor with the examples first, but {name}{path} is "
        f"{_described(columns)}. Make a tensor of it (torch.tensor, or return_tensors='pt' from a "
        "tokenizer)."
    )


def _is_listed(columns: Any, examples: int | None, name: str, path: str) -> bool:
    """Whether a list within the columns has one entry per example, and is not a nest of columns."""
    if hasattr(columns, "_fields") or examples is None or len(columns) != examples:
        return False
    if not all(has_rows(column) and len(column) == examples for column in columns):
        return True
    if isinstance(columns, list) and examples > 1:
        raise DataError(
            f"{name}{path} is a list of {examples} tensors that are {examples} long, for "
            f"{examples} examples: they may be the examples' own, or columns. Pass a tuple if each "
            "is a column with the examples first, or a Dataset of single examples with a "
            "collate_fn."
        )
    return False


def _examples(columns: Any) -> int | None:
    """How many examples the first tensor that is in no list, or else the first tensor, has."""
    examples = next(_sizes(columns, in_lists=False), None)
    return next(_sizes(columns, in_lists=True), None) if examples is None else examples


def _sizes(columns: Any, *, in_lists: bool, depth: int = 0) -> Iterator[int]:
    if has_rows(columns):
        yield columns.size(0) if isinstance(columns, Tensor) else len(columns)
    elif isinstance(columns, Mapping) or (
        isinstance(columns, list | tuple) and (in_lists or depth == 0)
    ):
        values = columns.values() if isinstance(columns, Mapping) else columns
        for value in values:
            yield from _sizes(value, in_lists=in_lists, depth=depth + 1)


def _tensor(tensor: Tensor, name: str, path: str) -> Tensor:
    if is_strided(tensor):
        return tensor
    kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    raise DataError(
        f"A column of {name} is cut into batches, but {name}{path} is a {kind} tensor, which "
        "cannot be sliced. Pass .to_dense() or a padded tensor, or a DataLoader whose collate_fn "
        "makes what the model takes: its batches then come one example at a time."
    )


def _array(array: np.ndarray, name: str, path: str) -> Tensor | np.ndarray:
    try:
        as_tensor(array[:0] if array.ndim else array)
    except TypeError as error:
        raise DataError(
            f"A column of {name}, {name}{path}, is an array of {array.dtype}, which no tensor can "
            "hold. Pass numbers, or a Dataset whose collate_fn makes tensors."
        ) from error
    is_shared = (
        array.flags.writeable
        and array.dtype.isnative
        and all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    )
    return torch.from_numpy(array) if is_shared else array


def _described(leaf: Any) -> str:
    if isinstance(leaf, int | float):
        return f"the number {leaf}"
    return a_kind(leaf)
