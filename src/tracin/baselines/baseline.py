"""What all baselines have in common, and what those have that also explain queries."""

from typing import Any, Protocol

from torch import Tensor

from tracin.baselines.suspect_scores import SuspectScores
from tracin.checks import is_int
from tracin.errors import QueryError
from tracin.run import Run
from tracin.scoring.batch_size import BatchSize


class Baseline(Protocol):
    """Ranks training examples by how suspect their label is."""

    def scores(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> SuspectScores:
        """One number per training example; high values are suspect."""
        ...


class HasInfluence(Protocol):
    """Says which training examples matter to a query, as `tracin.TracIn` does."""

    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """The influence of each training example on each query: [train, queries]."""
        ...


class ExplainingBaseline(Baseline, HasInfluence, Protocol):
    """Also says which training examples matter to a query."""


def check_run(run: Any, name: str) -> None:
    """Refuse anything but a run.

    Raises:
        QueryError: It is something else.
    """
    if not isinstance(run, Run):
        raise QueryError(
            f"{name} takes a run, tracin.TracIn(model, loss, checkpoints), as its first argument; "
            f"{type(run).__name__} was given."
        )


def checkpoint_number(run: Run, checkpoint: Any) -> int:
    """The checkpoint's place in the run, counted from 0; negative numbers count from the end.

    Raises:
        QueryError: There is no such checkpoint.
    """
    count = len(run.checkpoints)
    if not is_int(checkpoint, -count, count - 1):
        raise QueryError(
            f"checkpoint is a place in the run's list, from 0 to {count - 1}, or from -1 for the "
            f"last to {-count}; {checkpoint!r} was given."
        )
    return checkpoint % count
