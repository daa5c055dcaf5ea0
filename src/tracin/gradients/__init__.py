"""Per-example gradients and their algebra, for any model, never materialised unless cheaper."""

from tracin.gradients.coverage import Coverage, Covered, GradientMethod
from tracin.gradients.engine import Gradients, LateError, SteppedDownError, until_settled

__all__ = [
    "Coverage",
    "Covered",
    "GradientMethod",
    "Gradients",
    "LateError",
    "SteppedDownError",
    "until_settled",
]
