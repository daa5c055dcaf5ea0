"""When a Recorder saves, and which of its checkpoints it keeps."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from tracin.checkpoints.rate import number
from tracin.checkpoints.record import LogEntry
from tracin.checks import positive_int
from tracin.errors import CheckpointError

Losses: TypeAlias = Sequence[tuple[int, int, float]]


def refuse_other_moments(every: Any, every_n_epochs: Any, keep: Any) -> None:
    """Refuse what cannot say, together, when to save and what to keep."""
    if every != "epoch":
        positive_int(every, "every", CheckpointError, also='"epoch"')
    positive_int(every_n_epochs, "every_n_epochs", CheckpointError)
    if every_n_epochs != 1 and every != "epoch":
        raise CheckpointError(
            f"every_n_epochs={every_n_epochs} counts epochs, and every={every} steps: give "
            'every="epoch", or leave every_n_epochs out.'
        )
    if keep is None:
        return
    positive_int(keep, "keep", CheckpointError, also="None")
    if every != "epoch":
        raise CheckpointError(
            f"keep={keep} needs the loss of each checkpoint, and every={every} saves where none "
            'can be given: use every="epoch" with recorder.epoch(loss=...), or call '
            "recorder.save(loss=...) yourself where you want checkpoints."
        )


def kept(entries: Sequence[LogEntry], losses: Losses, keep: int) -> list[LogEntry]:
    """The `keep` entries with the largest loss reductions, and the last one.

    A reduction compares with the save before, also where that one's file is gone; so it makes no
    difference whether entries are dropped one by one or all at the end. Of equal ones the later
    is kept.
    """
    reduction = reductions(losses)
    ranked = sorted(entries, key=lambda one: (reduction.get(one.step, -math.inf), one.step))
    chosen = {one.step for one in [*ranked[-keep:], *entries[-1:]]}
    return [one for one in entries if one.step in chosen]


def reductions(losses: Losses) -> dict[int, float]:
    """Step -> by how much the loss went down since the save before; -inf for the first.

    >>> reductions([(10, 1, 2.0), (20, 2, 0.5), (30, 3, 0.75)])
    {10: -inf, 20: 1.5, 30: -0.25}
    """
    before = [-math.inf, *(loss for _, _, loss in losses)]
    return {step: last - loss for last, (step, _, loss) in zip(before, losses, strict=False)}


def finite(loss: Any) -> float | None:
    """The loss given with a checkpoint, as a number; None where none was given."""
    if loss is None:
        return None
    value = number(loss)
    if value is None or not math.isfinite(value):
        raise CheckpointError(
            "The loss given with a checkpoint must be one finite number, the mean over the "
            f"training set or the epoch's batches; {loss!r} was given. Without it, leave loss out."
        )
    return value
