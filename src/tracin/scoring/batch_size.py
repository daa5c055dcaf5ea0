"""How many examples go through the model at once."""

import torch

from tracin.checks import positive_int
from tracin.data import Batch, Size, Tokens, length, part
from tracin.errors import DataError
from tracin.gradients import Gradients
from tracin.gradients.held import held_bytes
from tracin.scoring.free_memory import free_memory

BatchSize = int | str | Tokens

MOST = 4096  # more gains nothing, and delays the first sign of progress
CPU_BYTES = 1 << 28  # beyond this the batch leaves the caches for good, and is no faster
GPU_SHARE = 0.3  # of the free memory
# Activations, their gradients, and per-example gradients in transit, in units of activations.
UNITS = 3


def checked_size(batch_size: BatchSize) -> Size | None:
    """A number of examples or of tokens, or None for "auto".

    Raises:
        DataError: Anything else.
    """
    if batch_size == "auto":
        return None
    if isinstance(batch_size, Tokens):
        return batch_size
    return positive_int(batch_size, "batch_size", DataError, also='"auto", tracin.Tokens(...)')


def fitting_size(gradients: Gradients, batch: Batch, device: torch.device) -> int:
    """A batch size whose activations fit well: on the device, or in what a CPU keeps near."""
    budget = CPU_BYTES
    if device.type == "cuda":
        budget = int(GPU_SHARE * free_memory(device))
    return max(1, min(MOST, budget // bytes_each(gradients, batch)))


def bytes_each(gradients: Gradients, batch: Batch) -> int:
    """What a pass holds per example of a batch."""
    few = part(batch, slice(0, min(2, length(batch))))
    held = held_bytes(gradients.model, gradients.compute, few)
    if gradients.is_sharded:
        # Whole weights are made anew in every pass; what two examples hold beyond one is theirs.
        one = held_bytes(gradients.model, gradients.compute, part(few, [0]))
        held = length(few) * (held - one) if length(few) > 1 else held
    return max(1, UNITS * held // length(few))
