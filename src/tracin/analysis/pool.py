"""What examples are selected from: their influence on targets, and how alike they are."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

NORMALISED = ("cosine", "checkpoint_cosine")


class Pool(Protocol):
    """Examples to select from, with the targets that they may help."""

    @property
    def ids(self) -> np.ndarray:
        """The ids of the examples: [pool]."""
        ...

    @property
    def target_ids(self) -> np.ndarray:
        """The ids of the targets: [targets]."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """How precise scores are."""
        ...

    def influence(self, members: Sequence[Tensor], normalise: str | None) -> Tensor:
        """The mean influence of every example on each group: [pool, groups], float64.

        Args:
            members: Per group, the positions of its targets.
            normalise: None, or one of `NORMALISED`.
        """
        ...

    def products(self, some: Sequence[int], others: Sequence[int]) -> Tensor:
        """The products of plain gradients, summed over checkpoints: [some, others], float64."""
        ...

    def target_products(self, some: Sequence[int]) -> Tensor:
        """The same of some examples with all targets: [some, targets], float64."""
        ...

    def target_squares(self) -> Tensor:
        """The squared lengths of the targets' plain gradients: [targets], float64."""
        ...


def cosines_of(scores: Tensor, squares: Tensor, group_squares: Tensor) -> Tensor:
    """Scores over the roots of squared lengths; 0 where one is 0.

    Args:
        scores: [..., pool, groups].
        squares: [..., pool].
        group_squares: [..., groups].
    """
    lengths = (
        squares.clamp(min=0).sqrt()[..., None] * group_squares.clamp(min=0).sqrt()[..., None, :]
    )
    return torch.where(lengths > 0, scores / lengths, 0.0)


def normalised(
    scores: Tensor,
    squares: Tensor,
    group_squares: Tensor,
    weights: Sequence[float],
    normalise: str,
) -> Tensor:
    """The cosine over all checkpoints, or the mean of those at each: [pool, groups].

    Args:
        scores: [checkpoints, pool, groups], weighted as the squares are.
        squares: [checkpoints, pool]; the examples' squared lengths.
        group_squares: [checkpoints, groups]; those of the groups' mean gradients.
        weights: What each checkpoint counts for in a mean.
        normalise: "cosine" or "checkpoint_cosine".

    Example:
        >>> scores = torch.tensor([[[3.0]], [[0.0]]])  # two checkpoints
        >>> squares, group = torch.tensor([[9.0], [7.0]]), torch.tensor([[1.0], [1.0]])
        >>> normalised(scores, squares, group, [1.0, 1.0], "checkpoint_cosine")
        tensor([[0.5000]])
    """
    if normalise == "cosine":
        return cosines_of(scores.sum(0), squares.sum(0), group_squares.sum(0))
    shares = torch.tensor(weights, dtype=scores.dtype)
    return torch.einsum(
        "cpg,c->pg", cosines_of(scores, squares, group_squares), shares / shares.sum()
    )
