"""The Hessian written out and inverted: for a last layer, as in the paper."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.baselines.curvature import Curvature
from tracin.baselines.solvers.solver import not_positive
from tracin.checks import positive_int
from tracin.errors import QueryError

ROWS = 256  # of the Hessian, for each pass over the data


@final
@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """A positive definite matrix by its eigenvectors.

    Attributes:
        vectors: [numbers, numbers], one eigenvector per column.
        values: [numbers]: eigenvalues, with the damping.
    """

    vectors: Tensor
    values: Tensor

    def solve(self, vectors: Tensor) -> Tensor:
        """The inverse times each vector: [vectors, numbers]."""
        return ((vectors.double() @ self.vectors) / self.values) @ self.vectors.mT


@final
@dataclass(frozen=True)
class Direct:
    """Forms the Hessian, in passes over the data of 256 rows each, and inverts it.

    Exact, and it knows every eigenvalue. Memory grows with the square of the parameters: 4,096
    take 134 MB.

    Args:
        most: The most numbers that the traced parameters may have.

    Raises:
        QueryError: `most` is no whole number of at least 1.
    """

    most: int = 4096

    def __post_init__(self) -> None:
        positive_int(self.most, "most", QueryError)

    def inverse(self, curvature: Curvature, damping: float) -> Eigenbasis:
        """The inverse of the curvature with `damping` on its diagonal.

        Raises:
            QueryError: The parameters have more than `most` numbers.
            CurvatureError: The damped Hessian is not positive definite.
        """
        numbers = curvature.numbers
        if numbers > self.most:
            raise QueryError(
                f"Direct() writes the Hessian out, and the traced parameters have {numbers:,} "
                f"numbers, more than most={self.most:,}. Trace the last layer alone, by "
                'TracIn(..., parameters="last"), or pass solver=ConjugateGradient() or LiSSA().'
            )
        hessian = torch.empty(numbers, numbers, dtype=torch.float64)
        for start in range(0, numbers, ROWS):
            stop = min(start + ROWS, numbers)
            rows = torch.zeros(stop - start, numbers, dtype=torch.float64)
            rows[torch.arange(stop - start), torch.arange(start, stop)] = 1
            hessian[start:stop] = curvature.products(rows)
        values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
        smallest, largest = float(values[0]), float(values[-1])
        # Below this an eigenvalue is rounding, of whatever sign it came out.
        rounding = numbers * torch.finfo(torch.float64).eps * max(largest, -smallest)
        if not smallest + damping > rounding:
            raise not_positive(smallest, damping, is_exact=True)
        return Eigenbasis(vectors, values + damping)
