"""How many numbers stand for a gradient, and from which seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from tracin.checks import is_int, positive_int
from tracin.errors import IndexingError


@final
@dataclass(frozen=True)
class Projection:
    """How much of a gradient is kept: enough numbers keep all of it, fewer an unbiased sketch.

    A score between two rows of numbers has the exact dot product as its mean over seeds; its
    standard deviation is about the product of the two gradients' lengths over sqrt(dim), and less
    where factors can be kept whole (docs/projections.md).

    Args:
        dim: Numbers an example and checkpoint.
        seed: Of all random numbers; the same seed gives the same rows on every machine.
        split: Numbers for parameters apart, by name or glob, as {"head.*": 512}; a parameter
            belongs to the first that it matches. All others share what is left. None divides
            `dim` by what the gradients of a first batch say.

    Raises:
        IndexingError: A number that is not a whole one, or not positive, or a split of more
            than there is.

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
            raise IndexingError(f"A projection's seed is a whole number; got {self.seed!r}.")
        if self.seed.bit_length() > 63:
            raise IndexingError("A projection's seed is a whole number of at most 63 bits.")
        if self.split is None:
            return
        for name, numbers in self.split.items():
            positive_int(numbers, f"A projection's split[{name!r}]", IndexingError)
        if sum(self.split.values()) > self.dim:
            raise IndexingError(
                f"The split gives away {sum(self.split.values())} numbers, but dim is {self.dim}. "
                "Give less, or raise dim."
            )
