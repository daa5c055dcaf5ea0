"""How the gradients of queries are held: exactly, or by matrices of low rank."""

from dataclasses import dataclass
from typing import final

from tracin.checks import is_int, positive_int
from tracin.errors import QueryError


@final
@dataclass(frozen=True)
class LowRank:
    """Hold each query's gradient of a matrix by its best approximation of this rank.

    For many queries of a large model, whose gradients do not fit in memory together, so that every
    training example is read again for each part of them. A rank of 16 takes 16 (in + out) numbers
    of a matrix in place of in x out, and the queries need fewer passes. Vectors, such as biases,
    and gradients that take no more memory as they are stay exact.

    The scores are then not exact, and how far they are off is known: what is left out of a query's
    gradient is told as a share of its length (`Explanations.left_out`; in the log, or as a warning
    where it is more than a tenth). A score is off by at most that share of the product of the
    query's and the example's gradient lengths, over all checkpoints. With a preconditioner the
    share is of the gradient that it has multiplied.

    Approximations come from the factors of gradients, with random vectors of their own seed
    (N. Halko, P.-G. Martinsson, J. A. Tropp, 2011, https://doi.org/10.1137/090771806).

    Args:
        rank: The rank; a gradient of this rank or a lower one is exact.
        seed: Of the random vectors.

    Raises:
        QueryError: `rank` is no whole number of at least 1, or `seed` no whole number.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(8, 8, bias=False)
        >>> run = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates=[0.1])
        >>> train = torch.randn(6, 8), torch.randn(6, 8)
        >>> queries = torch.randn(2, 8), torch.randn(2, 8)
        >>> found = run.explain(train, queries, k=2, query_form=tracin.LowRank(1))
        >>> [round(share, 3) for share in found.left_out.tolist()]  # these have rank 1
        [0.0, 0.0]
    """

    rank: int
    seed: int = 0

    def __post_init__(self) -> None:
        positive_int(self.rank, "rank", QueryError)
        if not is_int(self.seed, 0, 2**63 - 1):
            raise QueryError(
                f"seed is a whole number from 0 to 2**63 - 1; {self.seed!r} was given."
            )
