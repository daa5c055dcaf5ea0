"""Whether padding counts: an example collated alone against itself among longer ones."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from tracin.data import Batch, Examples, length, move, part
from tracin.data.batches import leaves
from tracin.errors import DataError, DataWarning
from tracin.gradients import Gradients
from tracin.random_state import same_random_state

LOOKED_AT = 8  # examples of the first batch that are collated alone


def warn_if_padding_counts(
    gradients: Gradients, train: Examples, positions: Sequence[int], batch: Batch
) -> None:
    """Compare the loss of the example that is padded most with its loss without padding.

    Raises:
        DataError: A row of the batch is not its example: rows are scored by their places.

    Args:
        gradients: With `check` done on the batch.
        train: Where the batch is from.
        positions: The batch's examples.
        batch: As collated, on the model's device.
    """
    if train.is_stored or train.alone is not None or length(batch) < 2:
        return
    device = next(leaf.device for _, leaf in leaves(batch) if isinstance(leaf, Tensor))
    size = _numbers(part(batch, [0]))
    with same_random_state():
        found = [
            (_numbers(single), row, single)
            for row, position in enumerate(positions[:LOOKED_AT])
            for single in [train.take([position])]
        ]
    _refuse_other_rows(train, positions, batch, [single for _, _, single in found])
    least, row, single = min(found, key=lambda each: each[:2])
    if least >= size:
        return
    padded, alone = (gradients.loss_of(each) for each in (part(batch, [row]), move(single, device)))
    gap = abs(padded - alone)
    if gap > gradients.tolerance * max(abs(alone), abs(padded)) + 1e-30:
        name = train.ids[positions[row]].item()
        share = gap / abs(alone) if alone else float("inf")
        warnings.warn(
            f"Padding counts: example {name!r} of {train.name} has loss "
            f"{alone:.6g} alone and {padded:.6g} padded to the length of its batch, {share:.1%} "
            "apart, so scores depend on which examples share a batch. Give the model a mask "
            "(attention_mask, lengths), pad all examples to one length, or set batch_size=1.",
            DataWarning,
            stacklevel=2,
        )


def _numbers(batch: Batch) -> int:
    return sum(leaf.numel() for _, leaf in leaves(batch) if isinstance(leaf, torch.Tensor))


def _refuse_other_rows(
    train: Examples, positions: Sequence[int], batch: Batch, singles: Sequence[Batch]
) -> None:
    """A collate_fn that sorts, shuffles or mixes its examples gives rows that are not theirs."""
    for row, single in enumerate(singles):
        if _is_row(part(batch, [row]), single):
            continue
        # One after the other: the first alone would draw the random numbers that `single` has.
        with same_random_state():
            once, again = (train.take([positions[row]]) for _ in range(2))
        if not _is_row(once, again):
            return  # random data: said elsewhere
        name = train.ids[positions[row]].item()
        raise DataError(
            f"Row {row} of the first batch of {train.name} is not example {name!r}, which comes "
            "there: alone the same collate_fn gives other numbers. It sorts, shuffles, mixes or "
            "normalises the examples of a batch, or the data set returns them in another order. "
            "Give a collate_fn that keeps each example in its place, or set batch_size=1."
        )


def _is_row(row: Batch, single: Batch) -> bool:
    """Whether two batches of one example have the same numbers, but for padding at either end."""
    ours, theirs = dict(leaves(row)), dict(leaves(single))
    return all(
        _is_padded(ours[path], theirs[path])
        for path in ours.keys() & theirs.keys()
        if isinstance(ours[path], Tensor) and isinstance(theirs[path], Tensor)
    )


def _is_padded(long: Tensor, short: Tensor) -> bool:
    if long.ndim != short.ndim or long.is_sparse or long.is_nested or short.is_nested:
        return True  # nothing can be said
    if any(there > here for here, there in zip(long.shape, short.shape, strict=True)):
        return True
    short = short.to(long)
    first = long[tuple(slice(0, size) for size in short.shape)]
    last = long[tuple(slice(long.shape[d] - n, None) for d, n in enumerate(short.shape))]
    return any(bool(((part == short) | (part != part)).all()) for part in (first, last))
