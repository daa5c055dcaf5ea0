"""Where examples come from: columns that are sliced, or items that are fetched and collated.

This is the only place that interprets what a user passes as data; all other code sees these kinds.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
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

from tracin.data.arrangement import (
    COUNTS,
    Arrangement,
    arrangement_of,
    checked,
    with_listed_texts,
)
from tracin.data.batches import (
    Batch,
    Entries,
    Single,
    copied,
    has_rows,
    length,
    mapped,
    mapped_within,
    part,
)
from tracin.data.columns import as_tensor, checked_columns, is_table, table_error
from tracin.data.lengths import KnownLengths
from tracin.data.tokens import Length
from tracin.errors import DataError
from tracin.plain_text import a_kind, listed
from tracin.random_state import same_random_state

_log = logging.getLogger(__name__)

Collate = Callable[[list[Any]], Batch]
Batches = Iterator[tuple[Sequence[int], Batch]]
"""Each with the positions of its examples."""


@final
class ColumnSource:
    """Tensors that hold all examples: a batch is a piece of each."""

    is_stored = True
    # Why examples come one at a time: never here.
    alone = None

    def __init__(self, columns: Batch, name: str, rows: Sequence[int] | None = None) -> None:
        self.columns = checked_columns(columns, name)
        self.name = name
        # The rows that a torch Subset chose; None is all of them, in order.
        self.rows = None if rows is None else torch.as_tensor(list(rows), dtype=torch.long)
        self.size = length(self.columns) if self.rows is None else len(self.rows)

    def __len__(self) -> int:
        return self.size

    def example(self, position: int) -> Any:
        """One example, without the example dimension."""

        def only(leaf: Any) -> Any:
            return leaf[0] if has_rows(leaf) or isinstance(leaf, Entries) else leaf

        return mapped(only, self._piece([position]))

    def take(self, positions: Sequence[int]) -> Batch:
        """The examples at `positions` as one batch; a copy, so that a model may write into it."""
        return copied(self._piece(positions))

    def batches(self, groups: Sequence[Sequence[int]], *, as_views: bool) -> Batches:
        """One batch per group of positions; views of the columns if the model writes into none."""
        for group in groups:
            yield group, self._view(group) if as_views else self.take(group)

    def lengths(self, positions: Sequence[int], length: Length | None) -> np.ndarray:
        """The tokens of each example, with its padding, which is as long as the longest."""
        measured = positions if length is not None else positions[:1]
        known = KnownLengths(self.example, len(self), self.name).at(measured, length)
        return np.full(len(positions), known.max(initial=0))

    def _view(self, group: Sequence[int]) -> Batch:
        return mapped_within(_outside_graphs, self._piece(group))

    def _piece(self, positions: Sequence[int]) -> Batch:
        return mapped(as_tensor, part(self.columns, self._index(positions)))

    def _index(self, positions: Sequence[int]) -> slice | Tensor:
        if self.rows is None and isinstance(positions, range) and positions.step == 1:
            return slice(positions.start, positions.stop)
        index = torch.as_tensor(list(positions), dtype=torch.long)
        return index if self.rows is None else self.rows[index]


@final
class DatasetSource:
    """A map-style dataset: a batch is made of examples fetched one by one and collated."""

    is_stored = False

    def __init__(
        self, dataset: Any, name: str, collate: Collate, loader: DataLoader[Any] | None = None
    ) -> None:
        self.dataset = dataset
        self.name = name
        self._is_stacked = collate is default_collate
        self.collate = partial(default_collated, name=name) if self._is_stacked else collate
        # Only its way of running workers is used; the batches are ours.
        self.loader = loader

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def _arrangement(self) -> Arrangement:
        """Where the examples are in what the collate_fn makes."""
        few = [at % len(self) for at in range(max(COUNTS))]
        with same_random_state():
            arrangement = arrangement_of(lambda count: self._collated(few[:count]), self.name)
        if arrangement.alone is not None:
            _log.info(
                "Examples of %s come one at a time, each by a backward pass of its own: %s.",
                self.name,
                arrangement.alone,
            )
        return arrangement

    @property
    def alone(self) -> str | None:
        """Why examples come one at a time, if they do: their batches have no example dimension."""
        return None if self._is_stacked else self._arrangement.alone

    def example(self, position: int) -> Any:
        """One example as the dataset gives it."""
        return self.dataset[position]

    def take(self, positions: Sequence[int]) -> Batch:
        """The examples at `positions` as one collated batch."""
        if self.alone is not None and len(positions) > 1:
            raise DataError(
                f"{len(positions)} examples of {self.name} do not make a batch, since they come "
                f"one at a time: {self.alone}."
            )
        return self._known(self._collated(positions), len(positions))

    def batches(self, groups: Sequence[Sequence[int]], *, as_views: bool) -> Batches:
        """One batch per group of positions, new ones, from the loader's workers if it has some."""
        if self.alone is not None:
            groups = [range(at, at + 1) for group in groups for at in group]
        if self.loader is None or self.loader.num_workers == 0:
            return ((group, self.take(group)) for group in groups)
        return self._from_workers(groups, self.loader)

    @cached_property
    def _known_lengths(self) -> KnownLengths:
        return KnownLengths(self.example, len(self), self.name, self.dataset)

    def lengths(self, positions: Sequence[int], length: Length | None) -> np.ndarray:
        """The tokens of each example, without padding; looked up once."""
        return self._known_lengths.at(positions, length)

    def _from_workers(self, groups: Sequence[Sequence[int]], loader: DataLoader[Any]) -> Batches:
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
            yield group, self._known(batch, len(group))

    def _collated(self, positions: Sequence[int]) -> Batch:
        many = getattr(self.dataset, "__getitems__", None)
        if callable(many):
            examples: Any = many(list(positions))
        else:
            examples = [self.dataset[position] for position in positions]
        return self.collate(examples)

    def _known(self, batch: Batch, examples: int) -> Batch:
        """A batch with its lists as what they are, and its examples first."""
        if self._is_stacked:
            return checked(with_listed_texts(batch, examples), examples, self.name)
        if self._arrangement.alone is not None:
            return Single(batch)
        return checked(self._arrangement.marked(batch), examples, self.name)


class _Around:
    """What stands around another source, and holds examples as that does."""

    def __init__(self, source: "Source") -> None:
        self.source = source

    @property
    def is_stored(self) -> bool:
        """Whether the source holds columns."""
        return self.source.is_stored

    @property
    def alone(self) -> str | None:
        """Why examples come one at a time, if they do."""
        return self.source.alone


@final
class Chosen(_Around):
    """Some examples of another source, in an order of their own."""

    def __init__(self, source: "Source", positions: Sequence[int]) -> None:
        super().__init__(source)
        self.positions = list(positions)

    def __len__(self) -> int:
        return len(self.positions)

    def example(self, position: int) -> Any:
        """One example as the source gives it."""
        return self.source.example(self.positions[position])

    def take(self, positions: Sequence[int]) -> Batch:
        """The examples at `positions` as one batch."""
        return self.source.take([self.positions[position] for position in positions])

    def batches(self, groups: Sequence[Sequence[int]], *, as_views: bool) -> Batches:
        """One batch per group of positions."""
        if self.alone is not None:
            groups = [range(at, at + 1) for group in groups for at in group]
        return ((group, self.take(group)) for group in groups)

    def lengths(self, positions: Sequence[int], length: Length | None) -> np.ndarray:
        """The tokens of each example."""
        return self.source.lengths([self.positions[position] for position in positions], length)


@final
class WithColumn(_Around):
    """Another source, whose batches become pairs (batch, numbers): a class per example, say.

    Args:
        source: The source.
        column: [examples, ...]: one row per example of the source.
    """

    def __init__(self, source: "Source", column: Tensor) -> None:
        super().__init__(source)
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def example(self, position: int) -> Any:
        """One example as the source gives it, without its number."""
        return self.source.example(position)

    def take(self, positions: Sequence[int]) -> Batch:
        """The examples at `positions` as one batch, with their numbers."""
        return self._paired(self.source.take(positions), positions)

    def batches(self, groups: Sequence[Sequence[int]], *, as_views: bool) -> Batches:
        """One batch per group of positions."""
        for positions, batch in self.source.batches(groups, as_views=as_views):
            yield positions, self._paired(batch, positions)

    def lengths(self, positions: Sequence[int], length: Length | None) -> np.ndarray:
        """The tokens of each example, without its number."""
        return self.source.lengths(positions, length)

    def _paired(self, batch: Batch, positions: Sequence[int]) -> Batch:
        numbers = self.column[torch.as_tensor(list(positions), dtype=torch.long)]
        return Single((batch.content, numbers)) if isinstance(batch, Single) else (batch, numbers)


Source = ColumnSource | DatasetSource | Chosen | WithColumn


def _outside_graphs(leaf: Any) -> Any:
    """A view of a tensor that autograd may save, apart from the graph that it may come from."""
    if not isinstance(leaf, Tensor):
        return leaf
    # Inference tensors keep no count of writes, which autograd needs: a copy does.
    return leaf.clone() if leaf.is_inference() else leaf.detach()


def default_collated(examples: list[Any], name: str) -> Batch:
    """Torch's own collate, with an error that says what to do when examples do not stack."""
    _refuse_other_keys(examples, name)
    try:
        return default_collate(examples)
    except (RuntimeError, TypeError, KeyError) as error:
        table = next((value for value in _values(examples[0]) if is_table(value)), None)
        if table is not None:
            library = type(table).__module__.partition(".")[0]
            raise DataError(
                f"The dataset of {name} returns {library} objects ({type(table).__name__}), which "
                "cannot be stacked to a batch. Return tensors from __getitem__, such as "
                "torch.tensor(row.to_numpy(), dtype=torch.float32)."
            ) from error
        raise DataError(
            f"Examples of {name} cannot be stacked to a batch: torch's default collate needs "
            "tensors, arrays and numbers of one shape per example. The error was: "
            f"{error}. Pass a DataLoader with a collate_fn that pads or "
            f"converts{_by_trainer(examples[0])}."
        ) from error


def _refuse_other_keys(values: Sequence[Any], name: str, path: str = "") -> None:
    """Torch's collate takes the keys of the first example: what others have besides would be lost.

    Raises:
        DataError: A mapping has other keys than that of the first example.
    """
    first = values[0]
    if isinstance(first, Mapping):
        keys = first.keys()
        for each in values[1:]:
            if not isinstance(each, Mapping) or each.keys() != keys:
                came = f"keys {listed(each)}" if isinstance(each, Mapping) else a_kind(each)
                raise DataError(
                    f"Examples of {name} cannot be stacked to a batch: example{path} of one has "
                    f"the keys {listed(keys)}, and of another {came}. Give all of them the same "
                    "keys, or pass a DataLoader with a collate_fn that fills in what is missing."
                )
        for key, value in first.items():
            if isinstance(value, Mapping | list | tuple):
                _refuse_other_keys([each[key] for each in values], name, f"{path}[{key!r}]")
    elif isinstance(first, list | tuple):
        for at, value in enumerate(first):
            if not isinstance(value, Mapping | list | tuple):
                continue
            if all(isinstance(each, list | tuple) and len(each) > at for each in values):
                _refuse_other_keys([each[at] for each in values], name, f"{path}[{at}]")


def _by_trainer(example: Any) -> str:
    """The way out that is shorter for tokenised texts."""
    if not isinstance(example, Mapping) or "input_ids" not in example:
        return ""
    return (
        "; for texts of unlike length, tracin.integrations.transformers.trainer_data(rows, "
        "collator, model) pads as the Trainer does"
    )


def _values(example: Any) -> list[Any]:
    """An example, or what it holds."""
    if isinstance(example, Mapping):
        return list(example.values())
    return list(example) if isinstance(example, list | tuple) else [example]


def source_of(data: Any, name: str) -> ColumnSource | DatasetSource:
    """Understand whatever a user passed as `data`."""
    source = _understood(data, name)
    if len(source) == 0:
        raise DataError(f"{name} holds no examples, but at least one is needed.")
    return source


def _understood(data: Any, name: str) -> ColumnSource | DatasetSource:
    if isinstance(data, DataLoader):
        return _from_loader(data, name)
    if isinstance(data, IterableDataset):
        raise _stream(data, name)
    # Subclasses of these two may give other examples than they store, so the type is exact.
    if type(data) is TensorDataset:
        return ColumnSource(data.tensors, name)
    if type(data) is Subset:
        whole = _understood(data.dataset, name)
        if isinstance(whole, ColumnSource) and whole.rows is None:
            return ColumnSource(whole.columns, name, rows=data.indices)
        return DatasetSource(data, name, default_collate)
    if is_table(data):
        raise table_error(name, data)
    if isinstance(data, Tensor | np.ndarray | Mapping):
        return ColumnSource(data, name)
    if isinstance(data, tuple):
        for at, column in enumerate(data):
            if is_table(column):
                raise table_error(f"{name}[{at}]", column)
    if isinstance(data, list | tuple) and _are_columns(data, name):
        return ColumnSource(data, name)
    if isinstance(data, str | bytes) or not (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        raise DataError(
            f"{name} has to be a map-style Dataset (with __len__ and __getitem__), an unshuffled "
            "DataLoader, a tensor, or a tuple or dict of tensors with the examples first, but got "
            f"{a_kind(data)}. A stream or an iterator has no fixed order to give "
            f"scores to: list({name}) makes a dataset of it where it fits in memory."
        )
    return DatasetSource(_with_tensors(data), name, default_collate)


def _with_tensors(dataset: Any) -> Any:
    """A Hugging Face dataset that gives tensors in place of lists, which torch would transpose."""
    written = getattr(dataset, "format", None)
    if isinstance(written, Mapping) and "type" in written and written["type"] is None:
        with_format = getattr(dataset, "with_format", None)
        return with_format("torch") if callable(with_format) else dataset
    return dataset


def _from_loader(loader: DataLoader[Any], name: str) -> ColumnSource | DatasetSource:
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        raise _stream(dataset, name)
    order = loader.batch_sampler
    if order is None:
        raise DataError(
            f"{name} is a DataLoader with batch_size=None, whose dataset makes the batches, so "
            "single examples are unknown. Pass a DataLoader with a batch_size, over a "
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
            f"Scores belong to examples by their positions, so {name} has to be read in order, "
            f"but this DataLoader shuffles or samples its examples ({kind}). Pass the dataset "
            "itself (loader.dataset), or a DataLoader with shuffle=False."
        )
    collate = loader.collate_fn
    if collate is default_collate:
        source = _understood(dataset, name)
        # Slices of tensors are what the loader would stack, for less.
        if isinstance(source, ColumnSource) and isinstance(dataset, TensorDataset | Subset):
            return source
    return DatasetSource(dataset, name, collate, loader)


def _stream(data: IterableDataset[Any], name: str) -> DataError:
    return DataError(
        f"{name} is an IterableDataset ({type(data).__name__}): it has no length and no fixed "
        "order, so an example cannot be fetched again. Pass a map-style Dataset; "
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
