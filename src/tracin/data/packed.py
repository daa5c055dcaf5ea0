"""Data sets of documents from packed rows: each alone, or each in its row."""

from collections.abc import Sequence
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
        start: Its first position in the row.
        stop: The position behind its last one.
    """

    row: int
    place: int
    start: int
    stop: int


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
        tokens = whole_numbers(row["input_ids"])[span.start : span.stop]
        labels = whole_numbers(row["labels"])[span.start : span.stop] if "labels" in row else tokens
        padding = 0, self._longest - len(tokens)
        return {
            "input_ids": F.pad(tokens, padding),
            "labels": F.pad(labels, padding, value=IGNORED),
            "attention_mask": F.pad(torch.ones_like(tokens), padding),
        }

    def in_its_row(self, position: int) -> dict[str, Tensor]:
        """A document as the model sees it in its row, with the loss that it has alone."""
        span = self.spans[position]
        row = self._rows.example(span.row)
        found = _as_given(row)
        if "position_ids" not in found and any(name in row for name in LENGTHS):
            # Collators make positions of lengths, and kernels go by them.
            starts = [one.start for one in self.spans if one.row == span.row]
            found["position_ids"] = _restarting(starts, len(found["input_ids"]))
        base = whole_numbers(row["labels"]) if "labels" in row else found["input_ids"]
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
        own = whole_numbers(row["labels"]) if "labels" in row else _predicted(found)
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


LENGTHS = ("seq_lengths", "cu_seq_lens_q")


def whole_numbers(values: Any) -> Tensor:
    """Whole numbers, in one row: collators put one of one before."""
    return torch.as_tensor(values).flatten().long()


def _as_given(row: Any) -> dict[str, Tensor]:
    """What a row has for the model."""
    names = ("input_ids", "position_ids", "attention_mask")
    return {name: whole_numbers(row[name]) for name in names if row.get(name) is not None}


def _predicted(found: dict[str, Tensor]) -> Tensor:
    """The labels of a row that has none: its tokens that are not masked.

    Where positions restart, nothing predicts a document's first token.
    """
    labels = found["input_ids"]
    if "position_ids" in found:
        places = found["position_ids"]
        is_first = F.pad(places.diff() != 1, (1, 0), value=True)
        labels = torch.where(is_first, IGNORED, labels)
    if "attention_mask" in found:
        labels = torch.where(found["attention_mask"] == 0, IGNORED, labels)
    return labels


def _restarting(starts: Sequence[int], count: int) -> Tensor:
    """Positions that begin again at each start: [count]."""
    places = torch.arange(count)
    begun = torch.zeros_like(places)
    for start in starts:
        begun[start:] = start
    return places - begun
