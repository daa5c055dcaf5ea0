"""Packed rows of tokens, taken apart again: each document is an example."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.checks import is_int
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
        DataError: A row is no mapping of whole numbers, one per token, or is not divided; or it has
            "cu_seq_lens_q", by which attention keeps documents apart, and in_context; or rows in
            context have other columns than the first.

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
    if in_context not in (None, True, False):
        raise DataError(f"in_context is True, False or None; {in_context!r} was given.")
    if separator is not None and not is_int(separator):
        raise DataError(
            f"separator is the number of a token, such as tokenizer.eos_token_id; {separator!r} "
            "was given."
        )
    source = source_of(rows, "the rows of documents")
    spans: list[Span] = []
    longest = 0
    first: Any = None
    for row in range(len(source)):
        found = source.example(row)
        whole = _Row.of(found, row)
        kept = whole.documents(separator)
        if in_context:
            _refuse_no_context(found, row)
            first = first or whole
            _refuse_other_columns(first, whole, row)
        longest = max(longest, len(whole.tokens))
        spans += [Span(row, place, *one) for place, one in enumerate(kept)]
    if not spans:
        raise DataError("The rows hold no documents: every position is masked. Give other rows.")
    names = rows.ids if isinstance(rows, WithIds) else np.arange(len(source))
    data: Any = (
        DocumentsInContext(source, spans, longest)
        if in_context
        else DocumentsAlone(source, spans, is_certain=in_context is False)
    )
    return WithIds(data, [f"{names[span.row]}:{span.place}" for span in spans])


def _refuse_no_context(row: Mapping[str, Any], at: int) -> None:
    if row.get("cu_seq_lens_q") is not None:
        raise DataError(
            f"Row {at} has 'cu_seq_lens_q', by which attention keeps documents apart: they have no "
            "context. Leave in_context=True out, or the lengths, if training had none."
        )


def _refuse_other_columns(first: "_Row", row: "_Row", at: int) -> None:
    """Batches have the columns of their first example: a mask of another one would be lost."""
    for name in first.columns.keys() ^ row.columns.keys():
        has, lacks = ("0", at) if name in first.columns else (at, "0")
        raise DataError(
            f"Row {has} has {name!r}, and row {lacks} has none. With in_context=True the model "
            "gets what the rows have: give it in all rows, or in none."
        )


@final
@dataclass(frozen=True)
class _Row:
    """A packed row, looked through.

    Attributes:
        given: As the data has it.
        at: Its place.
        tokens: Its tokens: [positions].
        columns: What else it has per token, and the model gets: [positions] each.
    """

    given: Mapping[str, Any]
    at: int
    tokens: Tensor
    columns: dict[str, Tensor]

    @classmethod
    def of(cls, row: Any, at: int) -> "_Row":
        """A row, if it has one number per token in each column."""
        if not isinstance(row, Mapping) or row.get("input_ids") is None:
            came = f"a mapping with {listed(row)}" if isinstance(row, Mapping) else a_kind(row)
            raise DataError(
                f"A packed row is a mapping with 'input_ids' and {listed(BOUNDS)}, but row {at} is "
                f"{came}. Give the rows as the trainer's collator takes or makes them, one at a "
                "time."
            )
        tokens = _numbers(row, "input_ids", at)
        shape = torch.as_tensor(row["input_ids"]).shape
        if shape[-1:] != tokens.shape:
            raise DataError(
                f"The 'input_ids' of row {at} have the shape {list(shape)}, and [positions] is "
                "needed. Give the rows one at a time."
            )
        names = [name for name in ("position_ids", "attention_mask") if row.get(name) is not None]
        return cls(row, at, tokens, {name: _numbers(row, name, at) for name in names})

    def documents(self, separator: int | None) -> list[tuple[int, int, int]]:
        """Where each document starts and stops, and the position of its first token.

        What is masked around a document is not its.
        """
        count, (lengths, restarts) = len(self.tokens), self._lengths(separator)
        mask = self.columns.get("attention_mask")
        sizes = {"documents": sum(lengths)}
        sizes |= {name: len(each) for name, each in self.columns.items()}
        if self.given.get("labels") is not None:
            sizes["labels"] = len(_numbers(self.given, "labels", self.at))
        if unlike := {name: size for name, size in sizes.items() if size != count}:
            words = {"documents": "documents of {} together", "attention_mask": "a mask of {}"}
            came = " and ".join(words.get(n, "{} " + n).format(s) for n, s in unlike.items())
            raise DataError(
                f"Row {self.at} has {count} tokens, but {came}. One value per token is needed; a "
                "mask of documents by documents has to be left out."
            )
        if min(lengths, default=0) < 0 or (mask is not None and bool((mask < 0).any())):
            raise DataError(
                f"Row {self.at} has a negative number where a length, or 0 or 1 of a mask, is "
                "needed. Give the rows as the trainer's collator makes them."
            )
        found, begin = [], 0
        for length in lengths:
            kept = torch.arange(begin, begin + length)
            kept = kept if mask is None else kept[mask[kept] != 0]
            if len(kept):
                start = int(kept[0])
                found.append((start, int(kept[-1]) + 1, self._place(start, begin, restarts)))
            begin += length
        return found

    def _place(self, start: int, begin: int, restarts: bool) -> int:
        """The position that the row gives a document's first token."""
        if "position_ids" in self.columns:
            return int(self.columns["position_ids"][start])
        return start - begin if restarts else start

    def _lengths(self, separator: int | None) -> tuple[list[int], bool]:
        """How many tokens each document has, and whether positions begin again with each."""
        row, at = self.given, self.at
        key = next((name for name in BOUNDS if row.get(name) is not None), None)
        if separator is not None and key is not None:
            raise DataError(
                f"Row {at} has {key!r}, which divides it, and separator={separator!r} was given. "
                "Leave separator out, or the column, if the trainer did not get it."
            )
        if separator is not None:
            ends = (self.tokens == separator).nonzero()[:, 0] + 1
            bounds = {0, *ends.tolist(), len(self.tokens)}
            return np.diff(sorted(bounds)).tolist(), False
        if key is None:
            raise DataError(
                f"Row {at} does not say where its documents end: it needs one of {listed(BOUNDS)}, "
                f"and has {listed(row)}. Let the collator return them (return_position_ids=True), "
                "or pass separator=tokenizer.eos_token_id where a token ends each document."
            )
        values = _numbers(row, key, at)
        if key == "seq_lengths":
            return values.tolist(), True
        if key == "cu_seq_lens_q":
            return values.diff().tolist(), True
        starts = torch.cat([values.new_zeros(1), 1 + (values.diff() != 1).nonzero()[:, 0]])
        ends = torch.cat([starts[1:], starts.new_tensor([len(values)])])
        return (ends - starts).tolist(), True


def _numbers(row: Mapping[str, Any], name: str, at: int) -> Tensor:
    """A column of a row, if it holds whole numbers: [values]."""
    try:
        values = torch.as_tensor(row[name])
        found = whole_numbers(values)
    except (TypeError, ValueError, RuntimeError) as error:
        came = a_kind(row[name])
        raise DataError(
            f"Row {at} has no numbers as {name!r}: it is {came}. Tokenize texts before, and give "
            "one list or tensor of whole numbers per row."
        ) from error
    if not bool((found == values.flatten()).all()):
        raise DataError(
            f"Row {at} has numbers with fractions as {name!r}. Give whole numbers, one per token."
        )
    return found
