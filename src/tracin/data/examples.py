"""Opens data: whatever is passed becomes examples in a fixed order, with ids."""

from collections.abc import Sequence
from itertools import pairwise
from operator import index
from typing import Any, final

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from tracin.data.batches import Batch
from tracin.data.ids import WithIds, checked_ids
from tracin.data.packed import DocumentsAlone, apart_within, are_in_context, labels_of
from tracin.data.sources import Batches, Chosen, Source, WithColumn, source_of
from tracin.data.tokens import Size, Tokens
from tracin.errors import DataError


@final
class Examples:
    """Examples in a fixed order; made by `open_examples`.

    Attributes:
        ids: [examples]; positions (int64), or what a `WithIds` gave: int64 or texts.
        name: What they are called in errors.
        unlabelled: The positions of those that a warning has named for having no label.
        is_compared: Whether two fetches of some examples were compared (see `repeatable.py`).
        apart: The documents of packed rows that they are, without their rows, and which ones; None
            for other examples, and once they were compared with what they are in their rows.
    """

    def __init__(
        self,
        source: Source,
        ids: np.ndarray,
        name: str,
        apart: tuple[DocumentsAlone, Sequence[int]] | None = None,
    ) -> None:
        self._source = source
        self.name = name
        self.ids = ids
        self.is_compared = False
        self.apart = apart
        self.unlabelled: set[int] = set()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Examples({self.name}, {len(self)} examples)"

    def take(self, positions: Sequence[int]) -> Batch:
        """The examples at `positions`, in that order, as one batch.

        The batch lies where the data lies: on the CPU, unless the user's tensors are elsewhere.

        Args:
            positions: positions in the data, not ids; a position may come more than once.
        """
        chosen = [index(position) for position in positions]
        for position in chosen:
            if not 0 <= position < len(self):
                raise DataError(
                    f"{self.name} holds {len(self)} examples, at positions 0 to {len(self) - 1}, "
                    f"but position {position} was asked for."
                )
        if not chosen:
            raise DataError(f"At least one position in {self.name} is needed to make a batch.")
        return self._source.take(chosen)

    def example(self, position: int) -> Any:
        """The example at a position, as the data gives it: neither collated nor in a batch."""
        return self._source.example(position)

    @property
    def is_stored(self) -> bool:
        """Whether batches are cut from columns in memory, the same ones each time."""
        return self._source.is_stored

    @property
    def alone(self) -> str | None:
        """Why examples come one at a time, if they do: their batches have no example dimension."""
        return self._source.alone

    def few(self, positions: Sequence[int]) -> Batch:
        """The examples at `positions` as one batch; the first of them where each comes alone."""
        return self.take(positions if self.alone is None else positions[:1])

    def subset(self, positions: Sequence[int]) -> "Examples":
        """The examples at `positions`, in that order and with their ids, as data of their own."""
        chosen = [index(position) for position in positions]
        apart = None
        if self.apart is not None:
            documents, positions = self.apart
            apart = documents, [positions[position] for position in chosen]
        return Examples(Chosen(self._source, chosen), self.ids[chosen], self.name, apart)

    def with_column(self, column: Tensor) -> "Examples":
        """The same examples and ids; batches are pairs of a batch and these numbers of it.

        Args:
            column: [examples, ...].
        """
        return Examples(WithColumn(self._source, column), self.ids, self.name)

    def order(self, size: Size, positions: range) -> Sequence[int]:
        """The positions as they are best read: the longest examples first where lengths count."""
        if not isinstance(size, Tokens):
            return positions
        lengths = self.lengths(size, positions)
        return _as_range(positions.start + np.argsort(-lengths, kind="stable"))

    def lengths(self, size: Tokens, positions: Sequence[int]) -> np.ndarray:
        """The tokens of each example: [positions]."""
        return self._source.lengths(positions, size.length)

    def groups(
        self,
        size: Size,
        positions: Sequence[int],
        most: int | None = None,
        lengths: np.ndarray | None = None,
    ) -> list[Sequence[int]]:
        """The positions in this order, divided into batches.

        Args:
            size: Examples per batch, or tokens with padding; at least one example.
            positions: In the order of reading.
            most: Examples per batch at most.
            lengths: [positions]: the tokens that each counts as; None for its own.
        """
        if isinstance(size, Tokens):
            lengths = self.lengths(size, positions) if lengths is None else lengths
            stops = _stops(lengths, size.limit, len(positions) if most is None else most)
            return [positions[start:stop] for start, stop in pairwise([0, *stops])]
        if size < 1:
            raise DataError(f"A batch holds at least one example, but size {size} was asked for.")
        step = size if most is None else min(size, most)
        return [positions[at : at + step] for at in range(0, len(positions), step)]

    def read(self, groups: Sequence[Sequence[int]], *, as_views: bool = False) -> Batches:
        """A batch per group of positions.

        A loader's workers are used where it has some; its batch size and drop_last are not, since
        every example has a score.

        Args:
            groups: The positions of each batch; examples that come one at a time make batches of
                their own.
            as_views: Give the user's own memory where that saves a copy: only for what is known
                not to write into its batch.
        """
        return iter(self._source.batches(groups, as_views=as_views))

    def batches(
        self, size: Size, *, start: int = 0, stop: int | None = None, as_views: bool = False
    ) -> Batches:
        """Batches of a span, each with the positions of its examples, as `read` gives them.

        Args:
            size: Examples per batch, in order; the last one may be smaller. Or tokens per batch,
                the longest examples first.
            start: The first position, as in a slice.
            stop: The position after the last, as in a slice; None is the end.
            as_views: As for `read`.
        """
        ordered = self.order(size, range(len(self))[start:stop])
        return self.read(self.groups(size, ordered), as_views=as_views)


def _stops(lengths: np.ndarray, limit: int, most: int) -> list[int]:
    """Where batches end whose examples, padded to the longest of each, keep to the limit."""
    stops, start, longest = [], 0, 1
    for at, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if at > start and (longest * (at + 1 - start) > limit or at - start >= most):
            stops.append(at)
            start, longest = at, max(1, length)
    return [*stops, len(lengths)] if len(lengths) else []


def _as_range(positions: np.ndarray) -> Sequence[int]:
    """The same positions; a range where they follow each other, so that batches can be views."""
    if len(positions) and bool((np.diff(positions) == 1).all()):
        return range(int(positions[0]), int(positions[-1]) + 1)
    return positions.tolist()


def open_examples(data: Any, *, name: str = "data") -> Examples:
    """Make `Examples` of data of any supported kind, without changing it.

    Args:
        data: a tensor (or array) with the examples first; a tuple, list or mapping of those
            (columns); a map-style Dataset or a sequence of examples, collated by torch's own
            collate; an unshuffled DataLoader, whose collate_fn and workers are used; a `WithIds`
            around any of them; or `Examples`.
        name: what to call it in errors.

    Raises:
        DataError: no examples, columns of unequal length, a shuffling loader, a stream, or
            something that is not data; or documents in context whose collate_fn replaces labels.

    Example:
        >>> import torch
        >>> examples = open_examples((torch.arange(5.0), torch.tensor([0, 1, 0, 1, 1])))
        >>> for positions, (inputs, labels) in examples.batches(2, start=1, stop=4):
        ...     print(positions, inputs, labels)
        range(1, 3) tensor([1., 2.]) tensor([1, 0])
        range(3, 4) tensor([3.]) tensor([1])
    """
    if isinstance(data, Examples):
        return data
    ids, apart, is_in_context = ids_within(data), apart_within(data), are_in_context(data)
    while isinstance(data, WithIds):
        data = data.dataset
    source = source_of(data, name)
    if ids is None:
        ids = np.arange(len(source), dtype=np.int64)
    examples = Examples(source, ids, name, apart)
    if is_in_context:
        _refuse_replaced_labels(examples)
    return examples


# Documents in context whose labels are compared with those of their batches.
COMPARED = 8


def _refuse_replaced_labels(documents: Examples) -> None:
    """Refuse a collate_fn that takes all tokens of a row for labels, not those of one document.

    Raises:
        DataError: It does.
    """
    for position in range(min(COMPARED, len(documents))):
        if labels_of(documents.take([position])) != labels_of(documents.example(position)):
            raise DataError(
                f"The collate_fn of {documents.name} replaces the labels of document "
                f"'{documents.ids[position]}', as DataCollatorForLanguageModeling does: each "
                "document would have the score of its whole row. Pass what tracin.documents(..., "
                "in_context=True) returns as it is: its rows are padded and need no collator."
            )


def ids_within(data: Any) -> np.ndarray | None:
    """The ids that a WithIds gave, also from within a loader or a subset."""
    if isinstance(data, WithIds):
        return data.ids.copy()
    if isinstance(data, DataLoader):
        return ids_within(data.dataset)
    if isinstance(data, Subset):
        ids = ids_within(data.dataset)
        return None if ids is None else checked_ids(ids[list(data.indices)])
    return None
