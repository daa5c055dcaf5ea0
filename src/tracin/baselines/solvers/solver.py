"""What a solver gives, and what it says of a Hessian that has no inverse."""

from typing import Protocol

from torch import Tensor

from tracin.baselines.curvature import Curvature
from tracin.errors import CurvatureError


class InverseHessian(Protocol):
    """(Hessian + damping)^-1 at one checkpoint, which is in place whenever it is used."""

    def solve(self, vectors: Tensor) -> Tensor:
        """The inverse times each vector: [vectors, numbers], float64 on the CPU."""
        ...


class Solver(Protocol):
    """A way to the inverse of a Hessian."""

    def inverse(self, curvature: Curvature, damping: float) -> InverseHessian:
        """The inverse of the curvature with `damping` on its diagonal.

        Raises:
            CurvatureError: It is found not to be positive definite.
        """
        ...


def not_positive(smallest: float, damping: float, is_exact: bool) -> CurvatureError:
    """The error for a damped Hessian that is not positive definite.

    Args:
        smallest: The smallest eigenvalue of the Hessian, without damping; or a bound above it.
        damping: What was added.
        is_exact: Whether it is the eigenvalue, not the bound.

    Example:
        >>> print(not_positive(-0.5, 0.1, True))
        The Hessian with damping=0.1 is not positive definite: the smallest eigenvalue of the Hessian is -0.5. Influence functions are about a minimum, where every eigenvalue is positive. Pass a damping of 0.55 or more, take a checkpoint at which training has converged, or fewer parameters (parameters="last").
    """  # noqa: E501
    known = "is" if is_exact else "is at most"
    # A tenth more than what would make it zero; a singular one needs some damping as well.
    enough = max(-1.1 * smallest, 1e-6)
    more = "or more" if is_exact else "or more, perhaps much more"
    return CurvatureError(
        f"The Hessian with damping={damping:g} is not positive definite: the smallest eigenvalue "
        f"of the Hessian {known} {smallest:.3g}. Influence functions are about a minimum, where "
        f"every eigenvalue is positive. Pass a damping of {enough:.3g} {more}, take a checkpoint "
        "at which training has converged, or fewer parameters "
        '(parameters="last").'
    )
