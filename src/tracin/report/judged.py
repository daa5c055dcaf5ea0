"""What results say of single examples: does the model agree with the label?"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from tracin.results.explanations import Influence
from tracin.results.suspects import Suspects


@final
@dataclass(frozen=True)
class Judged:
    """One example as a ranking of suspects has it, or an explanation.

    Attributes:
        given: Its label in the data.
        suggested: The label that the model would rather give.
        disagrees: Whether the model finds the suggested label likelier than the given one; None
            where labels are numbers, of which none is simply right.
        loss: Its loss; None where that is unknown.
    """

    given: Any
    suggested: Any
    disagrees: bool | None
    loss: float | None


def are_classes(suspects: Suspects) -> bool:
    """Whether labels are classes; targets of a regression are numbers with fractions."""
    return "residual" not in suspects.scores and suspects.given_labels.dtype.kind != "f"


def disagreements(suspects: Suspects) -> np.ndarray:
    """For each example whether the model finds another label likelier: [train], bool."""
    scores = suspects.scores
    if not are_classes(suspects):
        return np.zeros(len(suspects), dtype=bool)
    differs = np.asarray(suspects.given_labels != suspects.suggested_labels, dtype=bool)
    if "given_probability" in scores and "suggested_probability" in scores:
        likelier = scores["suggested_probability"] > scores["given_probability"]
        return differs & likelier.cpu().numpy()
    return differs


def judged_by_facts(influences: Iterable[Influence]) -> dict[int, Judged]:
    """The examples that explanations know the label and the prediction of, by position."""
    known = [one for one in influences if one.label is not None and one.predicted is not None]
    return {
        one.position: Judged(
            one.label,
            one.predicted,
            one.label != one.predicted if isinstance(one.label, int) else None,
            one.loss,
        )
        for one in known
    }


def judged(suspects: Suspects | None, positions: Iterable[int]) -> dict[int, Judged]:
    """The examples at some positions, as far as the ranking has them."""
    if suspects is None:
        return {}
    rows = np.flatnonzero(np.isin(suspects.positions, np.array(list(positions), dtype=np.int64)))
    disagrees, loss = disagreements(suspects), suspects.scores.get("loss")
    has_classes = are_classes(suspects)
    return {
        int(suspects.positions[row]): Judged(
            suspects.given_labels[row],
            suspects.suggested_labels[row],
            bool(disagrees[row]) if has_classes else None,
            None if loss is None else float(loss[row]),
        )
        for row in rows
    }
