"""Whether padding counts: an example collated alone against itself among longer ones."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from tracin.data import Batch, Examples, length, move, part
from tracin.data.batches import leaves
from tracin.data.random_state import same_random_state
from tracin.errors import DataWarning
from tracin.gradients import Gradients

LOOKED_AT = 8  # examples of the first batch that are collated alone


def warn_if_padding_counts(
    gradients: Gradients, train: Examples, positions: Sequence[int], batch: Batch
) -> None:
    """Compare the loss of the example that is padded most with its loss without padding.

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
