"""What queries of low rank leave out of their gradients, over all checkpoints, in words."""

import logging
import warnings
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.errors import TracInWarning
from tracin.scoring.batch_scores import BatchScores
from tracin.scoring.query_form import LowRank

LARGE = 0.1  # beyond this share a warning says so
CALLER = 6  # frames up to the line that asked: guarded and settled stand around TracIn's call

_log = logging.getLogger(__name__)


@final
class LeftOutSoFar:
    """The shares that queries of low rank leave out, while batches stream by.

    Args:
        checkpoints: How many there are.
        queries: How many there are.
    """

    def __init__(self, checkpoints: int, queries: int) -> None:
        self._lost = torch.zeros(checkpoints, queries, dtype=torch.float64)
        self._whole = torch.zeros(checkpoints, queries, dtype=torch.float64)

    def take(self, step: BatchScores, first: int = 0) -> None:
        """Take up a batch; `first` is the query that the batch calls its first."""
        if step.query_left_out is None:
            return
        columns = slice(first + step.queries.start, first + step.queries.stop)
        self._lost[step.checkpoint, columns] = step.query_left_out.lost.cpu()
        self._whole[step.checkpoint, columns] = step.query_left_out.whole.cpu()

    def shares(self) -> Tensor:
        """The share of each query's gradient that is left out: [queries], from 0 to 1."""
        lost, whole = self._lost.sum(0), self._whole.sum(0)
        return torch.where(whole > 0, lost / whole, torch.zeros_like(lost)).sqrt()


def left_out_in_words(shares: Tensor, ids: np.ndarray, form: LowRank) -> str:
    """What is left out of the queries, and what it means for their scores."""
    worst = int(shares.argmax())
    name: Any = ids[worst]
    name = name.item() if isinstance(name, np.generic) else name
    return (
        f"Queries are held by {form!r}: of their gradients {float(shares.mean()):.2g} is left out "
        f"on average, {float(shares[worst]):.2g} of query {name!r}. A score is off by at most that "
        "share of the product of both gradients' lengths."
    )


def say_left_out(words: str, shares: Tensor) -> None:
    """Log it, or warn where it is much.

    Warns:
        TracInWarning: More than a tenth of a query's gradient is left out.
    """
    if float(shares.max()) <= LARGE:
        _log.info("%s", words)
        return
    warnings.warn(f"{words} A higher rank leaves out less.", TracInWarning, stacklevel=CALLER)
