"""Which examples curvature is computed from, and the arguments that say so."""

from pathlib import Path
from typing import Any

import numpy as np

from tracin.checks import positive_int
from tracin.data import Examples, open_examples
from tracin.errors import PreconditionerError
from tracin.preconditioners.preconditioner import Place

ENOUGH = 4  # examples per entry of the widest side
FEWEST = 2000
# From here on curvature has no say, and products with its inverse leave the range of float32.
LARGEST = 1e12


def check_fit(damping: Any, examples: Any, at: Any, folder: Any, *, usual: float) -> None:
    """Refuse arguments that make no sense.

    Raises:
        PreconditionerError: One does not.
    """
    check_damping(damping, "damping", usual=usual)
    if examples is not None:
        positive_int(examples, "examples", PreconditionerError)
    if at not in ("each", "last"):
        raise PreconditionerError(f'at is "each" or "last"; {at!r} was given.')
    if not (folder is None or (isinstance(folder, str | Path) and str(folder))):
        raise PreconditionerError(
            "folder is the path of a folder, which is made if it is not there, or None; "
            f"{folder!r} was given."
        )


def check_damping(damping: Any, name: str, *, usual: float) -> None:
    """Refuse what is no amount of damping.

    Raises:
        PreconditionerError: It is none.
    """
    is_number = isinstance(damping, int | float) and not isinstance(damping, bool)
    if not (is_number and 0 <= damping <= LARGEST):
        raise PreconditionerError(
            f"{name} is a number from 0 on, {LARGEST:g} at most, in units of the mean eigenvalue; "
            f"{damping!r} was given. {usual} suits most."
        )


def spread_evenly(total: int, examples: int | None, widest: int) -> list[int]:
    """The positions that curvature is computed from, rising.

    One at random from each of as many equal parts: every k-th would be of one class alone where
    labels alternate. The same numbers give the same positions.

    Args:
        total: How many examples there are.
        examples: How many of them to take; None for as many as the widest side needs.
        widest: The numbers of the widest side.
    """
    count = min(total, max(FEWEST, ENOUGH * widest) if examples is None else examples)
    bounds = np.arange(count + 1) * total // max(1, count)
    within = np.random.default_rng(0).random(count) * np.diff(bounds)
    return (bounds[:-1] + within.astype(np.int64)).tolist()


def fit_data(who: str, fit: Any, examples: int | None, place: Place) -> Examples:
    """The examples to pass over: `examples` of them, or as many as the widest side needs.

    Raises:
        PreconditionerError: There are no data.
    """
    data = data_at_hand(f"tracin.{who}() computes curvature", who, fit, place)
    widest = max((max(one.shape, default=1) for one in place.parameters.values()), default=1)
    chosen = spread_evenly(len(data), examples, widest)
    return data if len(chosen) == len(data) else data.subset(chosen)


def data_at_hand(does: str, who: str, fit: Any, place: Place) -> Examples:
    """The data that were given, or the training data of the question.

    Args:
        does: What is done from them, for the error.
        who: The preconditioner.
        fit: The data that were given; None for none.
        place: The question's.

    Raises:
        PreconditionerError: There are none.
    """
    data = place.train if fit is None else open_examples(fit, name="fit")
    if data is None:
        raise PreconditionerError(
            f"{does} from training data, and none are at hand here. Pass some: "
            f"tracin.{who}(fit=train)."
        )
    return data
