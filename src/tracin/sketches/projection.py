"""The number of numbers that stand for a gradient, and their seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from tracin.checks import is_int, positive_int
from tracin.errors import IndexingError


@final
@dataclass(frozen=True)
class Projection:
    """How much of a gradient an index keeps: all of it, or an unbiased sketch.

    The score of two rows has the exact dot product as its mean over seeds. Its standard deviation
    is about the product of the two gradients' norms over sqrt(dim), and less where factors can be
    kept whole (docs/projections.md).

    Args:
        dim: Numbers per example and checkpoint.
        seed: The seed of all random numbers. Equal seeds give equal rows on every machine.
        split: Numbers reserved for some parameters, by name or glob, such as {"head.*": 512}. A
            parameter belongs to the first pattern that it matches; all others share what is left.
            None divides `dim` by the gradients of a few examples.

    Raises:
        IndexingError: A number is not a positive integer, or the split has more than `dim`.

    Example:
        >>> Projection(dim=1024)
        Projection(dim=1024, seed=0, split=None)
    """

    dim: int = 2048
    seed: int = 0
    split: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        positive_int(self.dim, "A projection's dim", IndexingError)
        if not is_int(self.seed):
            raise IndexingError(f"A projection's seed must be an integer; got {self.seed!r}.")
        if self.seed.bit_length() > 63:
            raise IndexingError("A projection's seed must have at most 63 bits.")
        if self.split is None:
            return
        for name, numbers in self.split.items():
            positive_int(numbers, f"A projection's split[{name!r}]", IndexingError)
        if sum(self.split.values()) > self.dim:
            raise IndexingError(
                f"The split has {sum(self.split.values())} numbers, but dim is {self.dim}. Use "
                "fewer, or raise dim."
            )
