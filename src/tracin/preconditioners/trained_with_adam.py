"""Warns where Adam took the steps, and scores weigh gradients as SGD would."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from tracin.checkpoints import Checkpoint
from tracin.checkpoints.adam_kind import ADAM_KINDS
from tracin.errors import CheckpointWarning

_ON_PURPOSE: ContextVar[bool] = ContextVar("plain_on_purpose", default=False)


@contextmanager
def plain_on_purpose() -> Iterator[None]:
    """Within, runs without a preconditioner are meant to have none."""
    token = _ON_PURPOSE.set(True)
    try:
        yield
    finally:
        _ON_PURPOSE.reset(token)


def warn_of_adam(checkpoints: Sequence[Checkpoint], stacklevel: int) -> None:
    """Warn of checkpoints that Adam trained, for a run without a preconditioner."""
    trained = [one for one in checkpoints if one.optimizer_kind in ADAM_KINDS]
    if not trained or _ON_PURPOSE.get():
        return
    kind = trained[0].optimizer_kind
    lacking = [one for one in trained if one.optimizer_path is None]
    way = (
        "Give preconditioner=tracin.Adam()"
        if not lacking
        else "preconditioner=tracin.Adam() needs the moments, which are not with "
        f"'{lacking[0].name}': record them by tracin.Recorder(..., optimizer_state=True), or read "
        "a Trainer's by tracin.integrations.transformers.from_run(folder, model)"
    )
    warnings.warn(
        f"Trained with {kind}, scored as if by SGD: {kind} divides each entry of a gradient by the "
        f"root of its second moment, and without a preconditioner scores leave that out. {way}. "
        "For plain gradients on purpose: warnings.filterwarnings('ignore', 'Trained with Adam').",
        CheckpointWarning,
        stacklevel=stacklevel + 1,
    )
