"""Lengths whose terms cancel: positions with nearly the same input and opposite output gradients.

Such are pairs of a chosen and a rejected text, or anchors near their positives. Each product of two
positions is rounded by itself, so a sum that is a thousandth of its terms has lost three digits;
gradients that are written out first lose half as many.
"""

import torch
from torch import Tensor

from tracin.gradients.forms.form import PerExampleGradient
from tracin.late_checks import LateChecks

# How many times its terms a sum may fall short of, by precision: about 1e-4 of it is rounding then.
_MOST = {torch.float64: 1e6, torch.float32: 1e3}
_MOST_IN_HALF = 8.0


def cancelled(squares: Tensor, terms: Tensor) -> Tensor:
    """The examples whose terms cancelled: [examples], of bool.

    Args:
        squares: Squared lengths: [examples].
        terms: The squared lengths of the terms that they are sums of: [examples].
    """
    return squares * _MOST.get(squares.dtype, _MOST_IN_HALF) < terms


def checked_squared_norm(form: PerExampleGradient, checks: LateChecks | None = None) -> Tensor:
    """The squared length of each example's gradient, written out where terms cancel: [examples].

    Args:
        form: The gradients.
        checks: What takes note of lengths whose terms cancel, which are then as they come; None
            looks at once.
    """
    squares, terms = form.squared_norm(), form.terms()
    if terms is None:
        return squares
    lost = cancelled(squares, terms)
    if checks is not None:
        checks.note(lost.any())
        return squares
    return torch.where(lost, form.written_norm(), squares) if bool(lost.any()) else squares
