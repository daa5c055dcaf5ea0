"""Where examples come from: columns that are sliced, or items that are fetched and collated.

What a user passes as data is understood here, once; behind it there are only these two kinds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from tracin.data.batches import Batch, is_texts, leaves, length, mapped, part
from tracin.errors import DataError

Collate = Callable[[list[Any]], Batch]


@final
class Columns:
    """Tensors that hold all examples: a batch is a piece of each."""

    def __init__(self, columns: Batch, name: str, rows: Sequence[int] | None = None) -> None:
        self.columns = _tensors(columns, name)
        # The rows that a torch Subset chose; None is all of them, in order.
        self.rows = None if rows is None else torch.as_tensor(list(rows), dtype=torch.long)
        self.size = length(self.columns) if self.rows is None else len(self.rows)

    def __len__(self) -> int:
        return self.size

    def example(self, position: int) -> Any:
        """One example, without the example dimension."""
        row = part(self.columns, self._index([position]))

        def only(leaf: Any) -> Any:
            is_row = isinstance(leaf, Tensor) and leaf.dim() > 0
            return leaf[0] if is_row or (is_texts(leaf) and len(leaf) == 1) else leaf

        return mapped(only, row)

    def take(self, positions: Sequence[int]) -> Batch:
        """The examples at `positions` as one batch; a copy, so that a model may write into it."""
        batch = part(self.columns, self._index(positions))
        return mapped(
            lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, batch
        )

    def batches(self, groups: Sequence[range], *, as_views: bool) -> Iterator[Batch]:
        """One batch a group of positions; views of the columns if the model writes into none."""
        if not as_views:
            return (self.take(group) for group in groups)
        columns = mapped(
            lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, self.columns
        )
        return (part(columns, self._index(group)) for group in groups)

    def _index(self, positions: Sequence[int]) -> slice | Tensor:
        if self.rows is None and isinstance(positions, range) and positions.step == 1:
            return slice(positions.start, positions.stop)
        index = torch.as_tensor(list(positions), dtype=torch.long)
        return index if self.rows is None else self.rows[index]


@final
class Items:
    """A map-style dataset: a batch is made of examples fetched one by one and collated."""

    def __init__(
        self, dataset: Any, name: str, collate: Collate, loader: DataLoader[Any] | None = None
    ) -> None:
        self.dataset = dataset
        self.name = name
        self.collate = stacked if collate is default_collate else collate
        # Only its way of running workers is used; the batches are ours.
        self.loader = loader

    def __len__(self) -> int:
        return len(self.dataset)

    def example(self, position: int) -> Any:
        """One example as the dataset gives it."""
        return self.dataset[position]

    def take(self, positions: Sequence[int]) -> Batch:
        """The examples at `positions` as one collated batch."""
        many = getattr(self.dataset, "__getitems__", None)
        if callable(many):
            examples: Any = many(list(positions))
        else:
            examples = [self.dataset[position] for position in positions]
        return self._checked(self.collate(examples), len(positions))

    def batches(self, groups: Sequence[range], *, as_views: bool) -> Iterator[Batch]:
        """One batch a group of positions, always new, from the loader's workers if it has some."""
        if self.loader is None or self.loader.num_workers == 0:
            return (self.take(group) for group in groups)
        return self._from_workers(groups, self.loader)

    def _from_workers(self, groups: Sequence[range], loader: DataLoader[Any]) -> Iterator[Batch]:
        workers = DataLoader(
            self.dataset,
            batch_sampler=[list(group) for group in groups],
            collate_fn=self.collate,
            num_workers=loader.num_workers,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            # Without one of its own a loader draws from the user's global generator.
            generator=torch.Generator().manual_seed(0),
        )
        for group, batch in zip(groups, workers, strict=True):
            yield self._checked(batch, len(group))

    def _checked(self, batch: Batch, examples: int) -> Batch:
        found = False
        for path, leaf in leaves(batch):
            if not isinstance(leaf, Tensor) or leaf.dim() == 0:
                continue
            found = True
            if leaf.shape[0] != examples:
                raise DataError(
                    f"Every tensor of a batch has the examples first, but after collating "
                    f"{examples} examples of {self.name}, batch{path} has shape "
                    f"{tuple(leaf.shape)}. Let the collate_fn return [examples, ...]; a value "
                    "that all examples share has to be a tensor without dimensions, or no tensor."
                )
        if not found:
            raise DataError(
                f"A batch is a tensor, or a tuple, list or mapping of tensors with the examples "
                f"first, but collating {examples} examples of {self.name} gave a "
                f"{type(batch).__name__} without any. Pass a DataLoader with a collate_fn that "
                "returns tensors."
            )
        return batch


@final
class Chosen:
    """Some examples of another source, in an order of their own."""

    def __init__(self, source: "Source", positions: Sequence[int]) -> None:
        self.source, self.positions = source, list(positions)

    def __len__(self) -> int:
        return len(self.positions)

    def example(self, position: int) -> Any:
        """One example as the source gives it."""
        return self.source.example(self.positions[position])

    def take(self, positions: Sequence[int]) -> Batch:
        """The examples at `positions` as one batch."""
        return self.source.take([self.positions[position] for position in positions])

    def batches(self, groups: Sequence[range], *, as_views: bool) -> Iterator[Batch]:
        """One batch a group of positions."""
        return (self.take(group) for group in groups)


Source = Columns | Items | Chosen


def stacked(examples: list[Any]) -> Batch:
    """Torch's own collate, with an error that says what to do when examples do not stack."""
    try:
        return default_collate(examples)
    except (RuntimeError, TypeError, KeyError) as error:
        raise DataError(
            "Torch's default collate needs examples of one shape, made of tensors, arrays and "
            f"numbers, but: {error}. Pass a DataLoader with a collate_fn that pads or converts."
        ) from error


def source_of(data: Any, name: str) -> Columns | Items:
    """Understand whatever a user passed as `data`.

    Raises:
        DataError: it is empty, ragged, shuffled, a stream, or no data at all.
    """
    source = _understood(data, name)
    if len(source) == 0:
        raise DataError(f"{name} holds no examples, but at least one is needed.")
    return source


def _understood(data: Any, name: str) -> Columns | Items:
    if isinstance(data, DataLoader):
        return _from_loader(data, name)
    if isinstance(data, IterableDataset):
        raise _stream(data, name)
    # Subclasses of these two may give other examples than they store, so the type is exact.
    if type(data) is TensorDataset:
        return Columns(data.tensors, name)
    if type(data) is Subset:
        whole = _understood(data.dataset, name)
        if isinstance(whole, Columns) and whole.rows is None:
            return Columns(whole.columns, name, rows=data.indices)
        return Items(data, name, default_collate)
    if isinstance(data, Tensor | np.ndarray | Mapping):
        return Columns(data, name)
    if isinstance(data, list | tuple) and _are_columns(data, name):
        return Columns(data, name)
    if isinstance(data, str | bytes) or not (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        raise DataError(
            f"{name} has to be a map-style Dataset (with __len__ and __getitem__), an unshuffled "
            "DataLoader, a tensor, or a tuple or dict of tensors with the examples first, but a "
            f"{type(data).__name__} came. A stream or an iterator has no fixed order to give "
            f"scores to: list({name}) makes a dataset of it where it fits in memory."
        )
    return Items(data, name, default_collate)


def _from_loader(loader: DataLoader[Any], name: str) -> Columns | Items:
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        raise _stream(dataset, name)
    order = loader.batch_sampler
    if order is None:
        raise DataError(
            f"{name} is a DataLoader with batch_size=None, whose dataset makes the batches, so "
            "single examples cannot be told apart. Pass a DataLoader with a batch_size, over a "
            "dataset of single examples."
        )
    sampler = getattr(order, "sampler", None)
    if (
        type(order) is not BatchSampler
        or type(sampler) is not SequentialSampler
        or len(sampler) != len(dataset)  # pyright: ignore[reportArgumentType]
    ):
        kind = type(sampler if type(order) is BatchSampler else order).__name__
        raise DataError(
            f"Scores belong to examples by their positions, so {name} has to be walked in order, "
            f"but this DataLoader shuffles or samples its examples ({kind}). Pass the dataset "
            "itself (loader.dataset), or a DataLoader with shuffle=False."
        )
    collate = loader.collate_fn
    if collate is default_collate:
        source = _understood(dataset, name)
        # Slices of tensors are what the loader would stack, for less.
        if isinstance(source, Columns) and isinstance(dataset, TensorDataset | Subset):
            return source
    return Items(dataset, name, collate, loader)


def _stream(data: IterableDataset[Any], name: str) -> DataError:
    return DataError(
        f"{name} is an IterableDataset ({type(data).__name__}): it has no length and no fixed "
        "order, so its examples cannot be found again. Pass a map-style Dataset; "
        f"list({name}) makes one where it fits in memory."
    )


def _are_columns(data: Sequence[Any], name: str) -> bool:
    """Whether a list or tuple holds columns (tensors of all examples), not single examples."""
    columns = [isinstance(value, Tensor | np.ndarray) and value.ndim > 0 for value in data]
    if not any(columns):
        return False
    if isinstance(data, list) and all(columns):
        shapes = {tuple(value.shape) for value in data}
        if len(shapes) == 1 and len(data) > data[0].shape[0]:
            raise DataError(
                f"{name} is a list of {len(data)} tensors of shape {tuple(data[0].shape)}, which "
                "may be as many examples or as many columns. Pass torch.stack of the list if each "
                "is one example, or a tuple if each is a column with the examples first."
            )
    return True


def _tensors(columns: Batch, name: str) -> Batch:
    """`columns` with arrays as tensors that share their memory, each checked to be a column."""

    def column(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            try:
                # Torch warns of memory that it might write to though it must not.
                return torch.from_numpy(leaf if leaf.flags.writeable else leaf.copy())
            except TypeError as error:
                raise DataError(
                    f"A column of {name} is an array of {leaf.dtype}, which no tensor can hold. "
                    "Pass numbers, or a Dataset whose collate_fn makes tensors."
                ) from error
        return leaf

    made = mapped(column, columns)
    first: tuple[str, int] | None = None
    for path, leaf in leaves(made):
        if isinstance(leaf, Tensor):
            if leaf.dim() == 0:
                continue
            if first is None:
                first = path, leaf.shape[0]
            elif leaf.shape[0] != first[1]:
                raise DataError(
                    f"The columns of {name} have one entry an example, so their first sizes are "
                    f"equal, but {name}{first[0]} has {first[1]} and {name}{path} has "
                    f"{leaf.shape[0]}. Make them equal; if each tensor is one example, pass a "
                    "Dataset or a list of (inputs, labels) pairs."
                )
        elif not (leaf is None or isinstance(leaf, bool | str | bytes) or is_texts(leaf)):
            raise DataError(
                f"A column of {name} is a tensor with the examples first, but {name}{path} is "
                f"{_described(leaf)}. Make a tensor of it (torch.tensor, or "
                "return_tensors='pt' from a tokenizer)."
            )
    if first is None:
        raise DataError(
            f"{name} has to hold tensors with the examples first, but this "
            f"{type(columns).__name__} holds none: a tensor without dimensions has no examples."
        )
    return made


def _described(leaf: Any) -> str:
    if isinstance(leaf, int | float):
        return f"the number {leaf}"
    return f"a {type(leaf).__name__}"
