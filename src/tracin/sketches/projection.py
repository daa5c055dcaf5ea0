"""How many numbers stand for a gradient, and from which seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

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
        _check_count("dim", self.dim)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise IndexingError(f"A projection's seed is a whole number; got {self.seed!r}.")
        if self.seed.bit_length() > 63:
            raise IndexingError("A projection's seed is a whole number of at most 63 bits.")
        if self.split is None:
            return
        for name, numbers in self.split.items():
            _check_count(f"split[{name!r}]", numbers)
        if sum(self.split.values()) > self.dim:
            raise IndexingError(
                f"The split gives away {sum(self.split.values())} numbers, but dim is {self.dim}. "
                "Give less, or raise dim."
            )


def _check_count(what: str, numbers: object) -> None:
    if isinstance(numbers, bool) or not isinstance(numbers, int) or numbers < 1:
        raise IndexingError(
            f"A projection's {what} is how many numbers are kept, a whole number of at least 1; "
            f"got {numbers!r}."
        )
