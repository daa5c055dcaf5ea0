"""Packed rows of tokens, taken apart again: each document is an example."""

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.data.ids import WithIds
from tracin.data.sources import source_of
from tracin.errors import DataError
from tracin.plain_text import a_kind, listed

IGNORED = -100  # the label of a position without a loss, as in torch and transformers
BOUNDS = ("position_ids", "seq_lengths", "cu_seq_lens_q")


def documents(rows: Any) -> WithIds:
    """The documents of packed rows as examples of their own, for influence per document.

    Packing puts several short texts into one row, and attention keeps them apart. So each
    document's loss is what it is alone, and its gradient too: as examples of their own they take
    the fast rules, and what is scored is the same. Two things differ if a trainer packed otherwise:
    where attention crosses from one document into the next, a document alone lacks what was before
    it; and the first token of a document is not predicted here, as with a label of -100 there.

    Args:
        rows: Data whose examples are mappings with "input_ids" [positions] and what divides them:
            "position_ids" that restart, "seq_lengths" (trl), or "cu_seq_lens_q". "labels" are used
            where there are any, and positions that "attention_mask" leaves out are no document's.
            Each row is read once now, and again when its documents are.

    Returns:
        Examples with "input_ids", "labels" and "attention_mask", padded on the right to the length
        of the longest. The id of a document is that of its row, a colon, and its place in the row:
        "3:0".

    Raises:
        DataError: A row is no mapping, is not divided, or its documents are not as long as it is.

    Example:
        >>> import torch, tracin
        >>> row = {"input_ids": [5, 6, 7, 8, 9], "position_ids": [0, 1, 2, 0, 1]}
        >>> packed = tracin.documents([row])
        >>> list(packed.ids), packed[1]["input_ids"], packed[1]["labels"]
        (['0:0', '0:1'], tensor([8, 9, 0]), tensor([   8,    9, -100]))
    """
    source = source_of(rows, "the rows of documents")
    found = [
        (row, place, _span(kept))
        for row in range(len(source))
        for place, kept in enumerate(_kept_documents(source.example(row), row))
    ]
    if not found:
        raise DataError("The rows hold no documents: every position is masked. Give other rows.")
    names = rows.ids if isinstance(rows, WithIds) else np.arange(len(source))
    longest = max(stop - start for _, _, (start, stop) in found)
    spans = [(row, start, stop) for row, _, (start, stop) in found]
    return WithIds(
        _Documents(source, spans, longest), [f"{names[row]}:{place}" for row, place, _ in found]
    )


@final
class _Documents:
    """A map-style dataset of equally long documents."""

    def __init__(self, rows: Any, spans: list[tuple[int, int, int]], longest: int) -> None:
        self._rows, self._spans, self._longest = rows, spans, longest

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        at, start, stop = self._spans[position]
        row = self._rows.example(at)
        tokens = _numbers(row["input_ids"])[start:stop]
        labels = _numbers(row["labels"])[start:stop] if "labels" in row else tokens
        padding = 0, self._longest - len(tokens)
        return {
            "input_ids": F.pad(tokens, padding),
            "labels": F.pad(labels, padding, value=IGNORED),
            "attention_mask": F.pad(torch.ones_like(tokens), padding),
        }


def _kept_documents(row: Any, at: int) -> list[Tensor]:
    """The positions of each document of a row that are not masked."""
    if not isinstance(row, Mapping) or "input_ids" not in row:
        came = f"a mapping with {listed(row)}" if isinstance(row, Mapping) else a_kind(row)
        raise DataError(
            f"A packed row is a mapping with 'input_ids' and {listed(BOUNDS)}, but row {at} is "
            f"{came}. Give the rows as the trainer's collator takes or makes them, one at a time."
        )
    count = _numbers(row["input_ids"]).numel()
    lengths = _lengths(row, at, count)
    mask = _numbers(row["attention_mask"]) if "attention_mask" in row else None
    if sum(lengths) != count or (mask is not None and mask.numel() != count):
        raise DataError(
            f"Row {at} has {count} tokens, but documents of {sum(lengths)} together"
            f"{'' if mask is None else f' and a mask of {mask.numel()}'}. One value per token is "
            "needed; a mask of documents by documents has to be left out."
        )
    places = torch.arange(count).split(lengths)
    kept = [one if mask is None else one[mask[one] != 0] for one in places]
    return [one for one in kept if len(one)]


def _lengths(row: Mapping[str, Any], at: int, count: int) -> list[int]:
    """How many tokens each document of a row has."""
    key = next((name for name in BOUNDS if row.get(name) is not None), None)
    if key is None:
        raise DataError(
            f"Row {at} does not say where its documents end: it needs one of {listed(BOUNDS)}, and "
            f"has {listed(row)}. Let the collator return them (return_position_ids=True)."
        )
    values = _numbers(row[key])
    if key == "seq_lengths":
        return values.tolist()
    if key == "cu_seq_lens_q":
        return values.diff().tolist()
    starts = torch.cat([values.new_zeros(1), 1 + (values.diff() != 1).nonzero()[:, 0]])
    return torch.cat([starts, starts.new_tensor([count])]).diff().tolist()


def _span(kept: Tensor) -> tuple[int, int]:
    """From the first position to behind the last; what is masked within stays."""
    return int(kept[0]), int(kept[-1]) + 1


def _numbers(values: Any) -> Tensor:
    """Whole numbers, in one row: collators put one of one before."""
    return torch.as_tensor(values).flatten().long()
