"""LiSSA: the inverse as a series in random batches' Hessians."""

import math
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

TRIAL = 16  # passes over the data to find the scale and a negative eigenvalue
MARGIN = 1.5  # a batch's Hessian is larger than the mean of all


@final
@dataclass(frozen=True)
class LiSSA:
    """Sums the series x <- v + (1 - (H + damping) / scale) x, with H of another batch each time.

    N. Agarwal, B. Bullins and E. Hazan, "Second-order stochastic optimization for machine learning
    in linear time", 2017, https://arxiv.org/abs/1602.03943, as in P. W. Koh and P. Liang,
    "Understanding black-box predictions via influence functions", 2017,
    https://arxiv.org/abs/1703.04730. The series converges where `scale` is above the largest
    eigenvalue of each batch's Hessian with the damping, in about scale / damping steps; noise of
    the batches stays. How far the result is from a solution is measured, by one pass over the data.

    Args:
        depth: The number of terms.
        repeats: The number of series, whose mean is taken.
        examples: The number of random examples per term; None for all of them, which makes each
            term a pass over the data and the result exact in the limit.
        scale: See above; None for 1.5 times the largest eigenvalue of the whole Hessian, with the
            damping, which takes 16 passes over the data.
        tolerance: The largest residual, relative to the gradient, that gives no warning.
        seed: Of the random examples.

    Raises:
        QueryError: An argument is out of range.
    """

    depth: int = 1000
    repeats: int = 1
    examples: int | None = 64
    scale: float | None = None
    tolerance: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        positive_int(self.depth, "depth", QueryError)
        positive_int(self.repeats, "repeats", QueryError)
        if self.examples is not None:
            positive_int(self.examples, "examples", QueryError, also="None")
        if self.scale is not None and not (self.scale > 0 and math.isfinite(self.scale)):
            raise QueryError(f"scale is None or a number above 0; {self.scale!r} was given.")
        if not self.tolerance > 0:
            raise QueryError(f"tolerance is a number above 0; {self.tolerance!r} was given.")

    def inverse(self, curvature: Curvature, damping: float) -> "LiSSAInverse":
        """The inverse of the curvature with `damping` on its diagonal.

        Raises:
            CurvatureError: The damped Hessian has an eigenvalue that is not positive.
        """
        smallest, largest = extreme_eigenvalues(curvature, TRIAL, self.seed)
        if smallest + damping <= 0:
            raise not_positive(smallest, damping, is_exact=False)
        scale = MARGIN * (largest + damping) if self.scale is None else self.scale
        return LiSSAInverse(curvature, damping, self, scale)


@final
@dataclass(frozen=True, eq=False)
class LiSSAInverse:
    """Sums the series when asked; see `LiSSA`."""

    curvature: Curvature
    damping: float
    settings: LiSSA
    scale: float

    def solve(self, vectors: Tensor) -> Tensor:
        """The inverse times each vector: [vectors, numbers].

        Raises:
            CurvatureError: The series diverges.
        """
        wanted = vectors.double()
        generator = torch.Generator().manual_seed(self.settings.seed)
        found = torch.stack(
            [self._series(wanted, generator) for _ in range(self.settings.repeats)]
        ).mean(0)
        left = wanted - self.curvature.products(found) - self.damping * found
        lengths = wanted.norm(dim=1)
        residual = float((left.norm(dim=1) / lengths.where(lengths > 0, 1)).max())
        if residual > self.settings.tolerance:
            warnings.warn(
                f"LiSSA is {residual:.2g} of the gradient away from a solution, more than its "
                f"tolerance of {self.settings.tolerance:g}. Pass a larger `depth`, more `examples` "
                "or `repeats`, or more damping.",
                CurvatureWarning,
                stacklevel=2,
            )
        return found

    def _series(self, wanted: Tensor, generator: torch.Generator) -> Tensor:
        found = wanted.clone()
        # A sum that converges is at most scale / damping times its first term.
        bound = 1e6 * max(1.0, self.scale / self.damping if self.damping else 1.0)
        limit = bound * wanted.norm()
        for step in range(1, self.settings.depth + 1):
            bent = self._products(found, generator) + self.damping * found
            found = wanted + found - bent / self.scale
            if not float(found.norm()) <= limit:
                raise CurvatureError(
                    f"LiSSA diverges: after {step} terms the sum is {float(found.norm()):.2g}, and "
                    f"the gradients {float(wanted.norm()):.2g}. scale={self.scale:.3g} is below "
                    "half of the largest eigenvalue of a batch's Hessian, or the Hessian is not "
                    f"positive definite. Pass scale={10 * self.scale:.3g}, more `examples` or more "
                    "damping."
                )
        return found / self.scale

    def _products(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        count = self.settings.examples
        if count is None or count >= len(self.curvature):
            return self.curvature.products(vectors)
        chosen = torch.randint(len(self.curvature), (count,), generator=generator)
        return self.curvature.sampled_products(vectors, chosen.tolist())
