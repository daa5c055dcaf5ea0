"""Refuses losses, gradients and scores that are NaN or infinite, by the name of the example."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tracin.errors import NonFiniteError
from tracin.scoring.batch_scores import BatchScores


def check_finite(found: BatchScores, ids: np.ndarray, checkpoint: str) -> None:
    """Refuse a batch in which a loss, a gradient or a score is NaN or infinite.

    Raises:
        NonFiniteError: One is; the error names the example.
    """
    losses = found.losses
    values = [each for each in (found.norms, found.scores) if each is not None]
    # One look: a sum over finite numbers is finite but for overflow, tested below.
    if bool(torch.isfinite(sum([each.sum() for each in values], losses.sum()))):
        return
    refuse_non_finite(losses, found.positions, ids, checkpoint, "loss", "example")
    for each in values:
        refuse_non_finite(each, found.positions, ids, checkpoint, "gradient", "example")


def refuse_non_finite(
    values: Tensor,
    positions: Sequence[int],
    ids: np.ndarray,
    checkpoint: str,
    what: str,
    whose: str,
) -> None:
    """Name the first example whose value is not finite."""
    rows = torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else torch.isfinite(values)
    if bool(rows.all()):
        return
    row = int((~rows).nonzero()[0])
    value = values[row].flatten()
    value = value[~torch.isfinite(value)][0].item()
    name = ids[positions[row]]
    name = name.item() if isinstance(name, np.generic) else name
    raise NonFiniteError(
        f"The {what} of {whose} {name!r} is {value} at checkpoint '{checkpoint}' "
        f"({int((~rows).sum())} in its batch are not finite). No score can be given for it: leave "
        "the checkpoint out, or the example, or compute the loss in higher precision."
    )
