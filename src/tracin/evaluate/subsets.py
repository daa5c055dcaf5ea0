"""Random subsets of the training data, for models to be trained on."""

import torch
from torch import Tensor

from tracin.checks import is_int, positive_int
from tracin.errors import QueryError


def half_subsets(examples: int, count: int, seed: int = 0) -> Tensor:
    """Random halves of the training data, each drawn by itself.

    Args:
        examples: How many training examples there are, at least 2.
        count: How many halves. The interval of an LDS narrows with their number: 50 to 100 suit
            most.
        seed: What is drawn depends on it alone.

    Returns:
        int64 [count, examples // 2]; positions in train, in increasing order.

    Raises:
        QueryError: A number is no whole number, or too small.

    Example:
        >>> from tracin.evaluate import half_subsets
        >>> half_subsets(6, 2)
        tensor([[2, 3, 5],
                [0, 3, 5]])
    """
    if not is_int(examples, 2):
        raise QueryError(
            f"examples is how many training examples there are, at least 2; {examples!r} was given."
        )
    positive_int(count, "count", QueryError)
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(examples, generator=generator) for _ in range(count)]
    return torch.stack([each[: examples // 2].sort().values for each in drawn])
