"""Measures every checkpoint of a run on held-out data."""

import numpy as np

from tracin.data import Examples, Size
from tracin.losses import Outcome
from tracin.precision import in_double
from tracin.results.held_out import HeldOut
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.forward_pass import forward_pass


def measured_on(
    walk: CheckpointPass, validation: Examples, batch_size: Size | None, progress: bool | None
) -> HeldOut:
    """The mean loss of each checkpoint and, where examples have classes, its accuracy.

    Args:
        walk: A pass whose loss also gives class scores, or predictions.
        validation: Examples that no checkpoint was trained on.
        batch_size: Examples or tokens per model call; None for as many examples as fit.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        NonFiniteError: A loss is NaN or infinite; names example and checkpoint.
    """
    losses, right = np.zeros(walk.checkpoints), np.zeros(walk.checkpoints)
    has_classes = True
    numbers = range(walk.checkpoints)
    for step in forward_pass(walk, validation, numbers, "validation", batch_size, progress):
        losses[step.checkpoint] += float(in_double(step.losses).sum())
        has_classes = isinstance(step.outcome, Outcome)
        if has_classes:
            is_right = step.outcome.logits.argmax(1) == step.outcome.labels
            right[step.checkpoint] += int(is_right.sum())
    count = len(validation)
    return HeldOut(walk.names, losses / count, right / count if has_classes else None)
