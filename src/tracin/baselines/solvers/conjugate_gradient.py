"""Conjugate gradient on Hessian-vector products: all parameters, nothing written out."""

import warnings
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.baselines.curvature import Curvature
from tracin.baselines.solvers.eigenvalues import extreme_eigenvalues
from tracin.baselines.solvers.solver import not_positive
from tracin.checks import positive_int
from tracin.errors import CurvatureError, CurvatureWarning, QueryError

LANCZOS = 32  # passes over the data to say by how much a Hessian is not positive definite


@final
@dataclass(frozen=True)
class ConjugateGradient:
    """Solves for each gradient by conjugate gradient; each step is one pass over the data.

    Gradients that are solved for together share the passes. Steps grow with the root of the ratio
    of the largest to the smallest eigenvalue, so that more damping takes fewer.

    Args:
        tolerance: Ends a solution whose residual is this small, relative to the gradient.
        steps: The most steps; with fewer than needed there is a warning.

    Raises:
        QueryError: An argument is out of range.
    """

    tolerance: float = 1e-5
    steps: int = 200

    def __post_init__(self) -> None:
        positive_int(self.steps, "steps", QueryError)
        if not 0 < self.tolerance < 1:
            raise QueryError(f"tolerance lies between 0 and 1; {self.tolerance!r} was given.")

    def inverse(self, curvature: Curvature, damping: float) -> "ConjugateGradientInverse":
        """The inverse of the curvature with `damping` on its diagonal; nothing is computed yet."""
        return ConjugateGradientInverse(curvature, damping, self)


@final
@dataclass(frozen=True, eq=False)
class ConjugateGradientInverse:
    """Solves when asked; see `ConjugateGradient`."""

    curvature: Curvature
    damping: float
    settings: ConjugateGradient

    def solve(self, vectors: Tensor) -> Tensor:
        """The inverse times each vector: [vectors, numbers].

        Raises:
            CurvatureError: A direction of negative or no curvature came up.
        """
        wanted = vectors.double()
        found = torch.zeros_like(wanted)
        residual, direction = wanted.clone(), wanted.clone()
        squares = residual.square().sum(1)
        goal = (self.settings.tolerance**2) * squares
        # What is solved leaves; the rest goes on: `open_` holds places in `vectors`.
        open_ = (squares > goal).nonzero()[:, 0]
        for _ in range(self.settings.steps):
            if not len(open_):
                return found
            ahead = direction[open_]
            bent = self.curvature.products(ahead) + self.damping * ahead
            along = (ahead * bent).sum(1)
            flat = along <= 0
            if not bool(torch.isfinite(along).all()):
                raise CurvatureError(
                    "A product with the Hessian is NaN or infinite. Leave out the examples with "
                    "extreme losses, or compute in higher precision."
                )
            if bool(flat.any()):
                at = int(flat.nonzero()[0])
                rayleigh = float(along[at] / ahead[at].square().sum())
                # The direction only shows that there is such an eigenvalue, not how far it goes.
                smallest, _ = extreme_eigenvalues(self.curvature, LANCZOS, seed=0)
                smallest = min(smallest, rayleigh - self.damping)
                raise not_positive(smallest, self.damping, is_exact=False)
            length = (squares[open_] / along)[:, None]
            found[open_] += length * ahead
            residual[open_] -= length * bent
            before = squares[open_]
            squares[open_] = residual[open_].square().sum(1)
            direction[open_] = residual[open_] + (squares[open_] / before)[:, None] * ahead
            open_ = open_[squares[open_] > goal[open_]]
        if len(open_):
            worst = float((squares[open_] / wanted[open_].square().sum(1)).max().sqrt())
            warnings.warn(
                f"Conjugate gradient has not reached its tolerance of {self.settings.tolerance:g} "
                f"in {self.settings.steps} steps: the residual is {worst:.2g} of the gradient in "
                f"the worst of {len(open_)}. Pass a larger `steps` or more damping.",
                CurvatureWarning,
                stacklevel=2,
            )
        return found
