"""Packed rows of tokens, taken apart again: each document is an example."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracin.data.ids import WithIds
from tracin.data.packed import DocumentsAlone, DocumentsInContext, Span, whole_numbers
from tracin.data.sources import source_of
from tracin.errors import DataError
from tracin.plain_text import a_kind, listed

BOUNDS = ("position_ids", "seq_lengths", "cu_seq_lens_q")


def documents(
    rows: Any, *, in_context: bool | None = None, separator: int | None = None
) -> WithIds:
    """The documents of packed rows as examples of their own, for influence per document.

    Packing puts several short texts into one row. Where attention kept them apart in training, a
    document's loss and gradient are what they are alone: it becomes an example without the others.
    The first token of a document is not predicted then, as with a label of -100 there.

    Where attention crossed from one document into the next, as in rows that are cut from one long
    text, a document's loss depends on what was before it. Then `in_context=True` keeps the row
    around it, with labels for the document alone: exact for any model, at the cost of one pass over
    a row per document. The model gets what the row has: "position_ids" and "attention_mask" only
    where they are there. The sums of a row's documents are the row itself.

    Args:
        rows: Data whose examples are mappings with "input_ids" [positions] and what divides them:
            "position_ids" that restart, "seq_lengths" (trl), or "cu_seq_lens_q". "labels" are used
            where there are any, and positions that "attention_mask" leaves out are no document's.
            Each row is read once now, and again when its documents are.
        in_context: Whether to keep the row around each document. None takes documents alone and
            compares the first ones with what they are in their rows when they are scored: where the
            model makes a difference, scoring stops with an error. False compares nothing: for
            training that kept documents apart by what the rows do not say.
        separator: The token that ends each document, such as `tokenizer.eos_token_id`, of rows with
            nothing else that divides them. It belongs to the document that it ends.

    Returns:
        Examples with "input_ids", "labels" and "attention_mask", padded on the right to the length
        of the longest; in context with what the row has. The id of a document is that of its row, a
        colon, and its place in the row: "3:0".

    Raises:
        DataError: A row is no mapping, is not divided, or its documents are not as long as it is;
            or it has "cu_seq_lens_q", by which attention keeps documents apart, and in_context.

    Example:
        >>> import torch, tracin
        >>> row = {"input_ids": [5, 6, 7, 8, 9], "position_ids": [0, 1, 2, 0, 1]}
        >>> packed = tracin.documents([row])
        >>> list(packed.ids), packed[1]["input_ids"], packed[1]["labels"]
        (['0:0', '0:1'], tensor([8, 9, 0]), tensor([   8,    9, -100]))
        >>> chunk = {"input_ids": [5, 6, 2, 8, 9]}
        >>> tracin.documents([chunk], in_context=True, separator=2)[1]["labels"]
        tensor([-100, -100, -100,    8,    9])
    """
    source = source_of(rows, "the rows of documents")
    spans: list[Span] = []
    longest = 0
    for row in range(len(source)):
        found = source.example(row)
        kept = _kept_documents(found, row, separator)
        if in_context and "cu_seq_lens_q" in found:
            raise DataError(
                f"Row {row} has 'cu_seq_lens_q', by which attention keeps documents apart: they "
                "have no context. Leave in_context=True out, or the lengths, if training had none."
            )
        longest = max(longest, whole_numbers(found["input_ids"]).numel())
        spans += [Span(row, place, int(one[0]), int(one[-1]) + 1) for place, one in enumerate(kept)]
    if not spans:
        raise DataError("The rows hold no documents: every position is masked. Give other rows.")
    names = rows.ids if isinstance(rows, WithIds) else np.arange(len(source))
    data: Any = (
        DocumentsInContext(source, spans, longest)
        if in_context
        else DocumentsAlone(source, spans, is_certain=in_context is False)
    )
    return WithIds(data, [f"{names[span.row]}:{span.place}" for span in spans])


def _kept_documents(row: Any, at: int, separator: int | None) -> list[Tensor]:
    """The positions of each document of a row that are not masked."""
    if not isinstance(row, Mapping) or "input_ids" not in row:
        came = f"a mapping with {listed(row)}" if isinstance(row, Mapping) else a_kind(row)
        raise DataError(
            f"A packed row is a mapping with 'input_ids' and {listed(BOUNDS)}, but row {at} is "
            f"{came}. Give the rows as the trainer's collator takes or makes them, one at a time."
        )
    count = whole_numbers(row["input_ids"]).numel()
    lengths = _lengths(row, at, count, separator)
    mask = whole_numbers(row["attention_mask"]) if "attention_mask" in row else None
    if sum(lengths) != count or (mask is not None and mask.numel() != count):
        raise DataError(
            f"Row {at} has {count} tokens, but documents of {sum(lengths)} together"
            f"{'' if mask is None else f' and a mask of {mask.numel()}'}. One value per token is "
            "needed; a mask of documents by documents has to be left out."
        )
    places = torch.arange(count).split(lengths)
    kept = [one if mask is None else one[mask[one] != 0] for one in places]
    return [one for one in kept if len(one)]


def _lengths(row: Mapping[str, Any], at: int, count: int, separator: int | None) -> list[int]:
    """How many tokens each document of a row has."""
    key = next((name for name in BOUNDS if row.get(name) is not None), None)
    if separator is not None and key is not None:
        raise DataError(
            f"Row {at} has {key!r}, which divides it, and separator={separator!r} was given. Leave "
            "separator out, or the column, if the trainer did not get it."
        )
    if separator is not None:
        ends = (whole_numbers(row["input_ids"]) == separator).nonzero()[:, 0] + 1
        bounds = {0, *ends.tolist(), count}
        return np.diff(sorted(bounds)).tolist()
    if key is None:
        raise DataError(
            f"Row {at} does not say where its documents end: it needs one of {listed(BOUNDS)}, and "
            f"has {listed(row)}. Let the collator return them (return_position_ids=True), or pass "
            "separator=tokenizer.eos_token_id where a token ends each document."
        )
    values = whole_numbers(row[key])
    if key == "seq_lengths":
        return values.tolist()
    if key == "cu_seq_lens_q":
        return values.diff().tolist()
    starts = torch.cat([values.new_zeros(1), 1 + (values.diff() != 1).nonzero()[:, 0]])
    return torch.cat([starts, starts.new_tensor([count])]).diff().tolist()
