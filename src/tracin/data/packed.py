"""Data sets of documents from packed rows: each alone, or each in its row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from tracin.data.ids import WithIds

IGNORED = -100  # the label of a position without a loss, as in torch and transformers


@final
@dataclass(frozen=True)
class Span:
    """Where a document is; what is masked within it stays.

    Attributes:
        row: Its row.
        place: How many documents of the row are before it.
        start: Where it starts in the row.
        stop: Where the next begins.
        position: What the model is told of its first token's place: 0 where positions begin again
            with each document.
    """

    row: int
    place: int
    start: int
    stop: int
    position: int


@final
class DocumentsAlone:
    """A map-style dataset of documents, each without the others of its row, equally long.

    Args:
        rows: Where packed rows are from.
        spans: The documents.
        is_certain: Whether training kept documents apart for sure, whatever the model does.
    """

    def __init__(self, rows: Any, spans: Sequence[Span], *, is_certain: bool) -> None:
        self._rows, self.spans, self.is_certain = rows, spans, is_certain
        self._longest = max(span.stop - span.start for span in spans)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        span = self.spans[position]
        row = self._rows.example(span.row)
        within = slice(span.start, span.stop)
        tokens, mask = whole_numbers(row["input_ids"])[within], _mask(row)[within]
        padding = 0, self._longest - len(tokens)
        return {
            "input_ids": F.pad(tokens, padding),
            "labels": F.pad(_labels(row)[within], padding, value=IGNORED),
            "attention_mask": F.pad(mask, padding),
        }

    def in_its_row(self, position: int) -> dict[str, Tensor]:
        """A document as the model sees it in its row, with the loss that it has alone."""
        span = self.spans[position]
        row = self._rows.example(span.row)
        found = _as_given(row)
        if "position_ids" not in found and any(row.get(name) is not None for name in LENGTHS):
            # Collators make positions of lengths, and kernels go by them.
            starts = [one.start - one.position for one in self.spans if one.row == span.row]
            found["position_ids"] = _restarting(starts, len(found["input_ids"]))
        base = _labels(row)
        labels = torch.full_like(base, IGNORED)
        labels[span.start + 1 : span.stop] = base[span.start + 1 : span.stop]
        return {**found, "labels": labels}


@final
class DocumentsInContext:
    """A map-style dataset of documents in their rows: other documents have no labels.

    Args:
        rows: Where packed rows are from.
        spans: The documents.
        longest: The positions of the longest row, to which others are padded on the right.
    """

    def __init__(self, rows: Any, spans: Sequence[Span], longest: int) -> None:
        self._rows, self._spans, self._longest = rows, spans, longest

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        span = self._spans[position]
        row = self._rows.example(span.row)
        found = _as_given(row)
        labels = torch.full_like(found["input_ids"], IGNORED)
        own = _labels(row, is_first_predicted="position_ids" not in found)
        labels[span.start : span.stop] = own[span.start : span.stop]
        left = self._longest - len(labels)
        made = {name: F.pad(values, (0, left)) for name, values in found.items()}
        if left and "position_ids" in made:
            made["position_ids"][-left:] = torch.arange(left)  # a text of its own
        return {**made, "labels": F.pad(labels, (0, left), value=IGNORED)}


def apart_within(data: Any) -> tuple[DocumentsAlone, Sequence[int]] | None:
    """Documents without their rows that data is made of, and which of them in order; else None."""
    if isinstance(data, WithIds | DataLoader):
        return apart_within(data.dataset)
    if isinstance(data, DocumentsAlone):
        return data, range(len(data))
    found = apart_within(data.dataset) if isinstance(data, Subset) else None
    if found is None:
        return None
    whole, positions = found
    return whole, [positions[at] for at in data.indices]


def are_in_context(data: Any) -> bool:
    """Whether data is made of documents in their rows."""
    if isinstance(data, WithIds | DataLoader | Subset):
        return are_in_context(data.dataset)
    return isinstance(data, DocumentsInContext)


def labels_of(example: Any) -> list[int]:
    """The labels of an example or a batch that are predicted, in order; none where it has none."""
    labels = example.get("labels") if isinstance(example, Mapping) else None
    if labels is None:
        return []
    numbers = whole_numbers(labels)
    return numbers[numbers != IGNORED].tolist()


LENGTHS = ("seq_lengths", "cu_seq_lens_q")


def whole_numbers(values: Any) -> Tensor:
    """Whole numbers, in one row: collators put one of one before."""
    return torch.as_tensor(values).flatten().long()


def _as_given(row: Any) -> dict[str, Tensor]:
    """What a row has for the model."""
    names = ("input_ids", "position_ids", "attention_mask")
    return {name: whole_numbers(row[name]) for name in names if row.get(name) is not None}


def _mask(row: Any) -> Tensor:
    """Which tokens of a row are there: [positions]."""
    if row.get("attention_mask") is None:
        return torch.ones_like(whole_numbers(row["input_ids"]))
    return whole_numbers(row["attention_mask"]).ne(0).long()


def _labels(row: Any, *, is_first_predicted: bool = True) -> Tensor:
    """The labels of a row or, where it has none, its tokens that are not masked: [positions].

    Args:
        row: The row.
        is_first_predicted: Whether what comes before a document predicts its first token; where
            positions restart, nothing does.
    """
    if row.get("labels") is not None:
        return whole_numbers(row["labels"])
    labels = torch.where(_mask(row) == 0, IGNORED, whole_numbers(row["input_ids"]))
    if is_first_predicted:
        return labels
    is_first = F.pad(whole_numbers(row["position_ids"]).diff() != 1, (1, 0), value=True)
    return torch.where(is_first, IGNORED, labels)


def _restarting(starts: Sequence[int], count: int) -> Tensor:
    """Positions that begin again at each start: [count]."""
    places = torch.arange(count)
    begun = torch.zeros_like(places)
    for start in starts:
        begun[start:] = start
    return places - begun
