"""Scores drawn at random: what any measure gives for nothing."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tracin.data import open_examples
from tracin.scoring.batch_size import BatchSize


@final
@dataclass(frozen=True)
class RandomScores:
    """Normally distributed scores, each by itself.

    Args:
        seed: What is drawn depends on it alone.

    Example:
        >>> import torch
        >>> from tracin.baselines import RandomScores
        >>> RandomScores(seed=0).influence(torch.zeros(3, 1), torch.zeros(2, 1)).shape
        torch.Size([3, 2])
    """

    seed: int = 0

    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """One number per training example and query: [train, queries], float64.

        Args:
            train: The training examples, which are only counted.
            queries: The queries, which are only counted.
            batch_size: Nothing goes through a model.
            progress: There is none to show.
        """
        shape = (
            len(open_examples(train, name="train")),
            len(open_examples(queries, name="queries")),
        )
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64)
