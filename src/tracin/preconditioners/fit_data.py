"""Which examples curvature is computed from, and the arguments that say so."""

from typing import Any

from tracin.checks import positive_int
from tracin.data import Examples, open_examples
from tracin.errors import PreconditionerError
from tracin.preconditioners.preconditioner import Place

ENOUGH = 4  # examples per entry of the widest side
FEWEST = 2000


def check_fit(damping: Any, examples: Any, at: Any, *, usual: float) -> None:
    """Refuse arguments that make no sense.

    Raises:
        PreconditionerError: One does not.
    """
    is_number = isinstance(damping, int | float) and not isinstance(damping, bool)
    if not (is_number and 0 <= damping < float("inf")):
        raise PreconditionerError(
            "damping is a number from 0 on, in units of the mean eigenvalue; "
            f"{damping!r} was given. {usual} suits most."
        )
    if examples is not None:
        positive_int(examples, "examples", PreconditionerError)
    if at not in ("each", "last"):
        raise PreconditionerError(f'at is "each" or "last"; {at!r} was given.')


def fit_data(who: str, fit: Any, examples: int | None, place: Place) -> Examples:
    """The examples to pass over: `examples` of them, or as many as the widest side needs.

    Raises:
        PreconditionerError: There are no data.
    """
    data = place.train if fit is None else open_examples(fit, name="fit")
    if data is None:
        raise PreconditionerError(
            f"tracin.{who}() computes curvature from training data, and none are at hand here. "
            f"Pass some: tracin.{who}(fit=train)."
        )
    if examples is None:
        widest = max((max(one.shape, default=1) for one in place.parameters.values()), default=1)
        examples = max(FEWEST, ENOUGH * widest)
    if examples >= len(data):
        return data
    return data.subset([at * len(data) // examples for at in range(examples)])
