"""Per-example gradients and their algebra, for any model, never materialised unless cheaper."""

from tracin.gradients.coverage import Coverage, Covered, GradientMethod
from tracin.gradients.engine import Gradients
from tracin.gradients.sharded_refusal import LateError
from tracin.gradients.stepping_down import SteppedDownError, until_settled
from tracin.gradients.visit import Visit

__all__ = [
    "Coverage",
    "Covered",
    "GradientMethod",
    "Gradients",
    "LateError",
    "SteppedDownError",
    "Visit",
    "until_settled",
]
