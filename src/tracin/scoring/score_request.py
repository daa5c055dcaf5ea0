"""What a pass over checkpoints computes for every batch."""

from dataclasses import dataclass
from typing import final

from tracin.data import Examples
from tracin.scoring.query_form import LowRank


@final
@dataclass(frozen=True)
class ScoreRequest:
    """What to compute for every batch.

    Attributes:
        queries: Examples to score influence on, or None.
        span: Which of them.
        together: Whether the queries are one, their sum.
        memory: Bytes that the queries' gradients may take, about; None for half of what is free.
        norms: Whether to compute squared gradient lengths.
        apart: Parameters whose squared lengths are also given apart from those of all.
        only_apart: Parameters that are traced for `apart` alone.
        facts: Whether to read labels, predictions and losses off the loss, at the last checkpoint.
        form: How the queries' gradients are held; None for exactly.
    """

    queries: Examples | None = None
    span: range = range(0)
    together: bool = False
    memory: int | None = None
    norms: bool = False
    apart: frozenset[str] = frozenset()
    only_apart: frozenset[str] = frozenset()
    facts: bool = False
    form: LowRank | None = None
