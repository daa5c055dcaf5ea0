"""A block whose random numbers are decided by a seed, and nobody else's are changed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from tracin.random_state import same_random_state


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch; on leaving, all are as they were.

    Example:
        >>> import torch
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     again = torch.rand(2)
        >>> torch.equal(first, again)
        True
    """
    with same_random_state():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield
