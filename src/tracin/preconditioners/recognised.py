"""Which examples are landmarks: their gradients differ from a landmark's by rounding alone."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

# Two passes over one example differ by less, in any precision: beyond, the data were others.
MOST_ROUNDING = 0.05

# How far a gradient may be from a landmark's, in units of the rounding that was measured, and in
# those of the last digit at least.
TIMES, DIGITS = 4, 8


@final
@dataclass(frozen=True, eq=False)
class Recognised:
    """What landmarks are recognised by.

    Attributes:
        products: Theirs with random directions: [landmarks, probes].
        lengths: Of their gradients: [landmarks].
        limit: How far a gradient may be from a landmark's, in units of its length.
    """

    products: Tensor
    lengths: Tensor
    limit: float

    @classmethod
    def by(cls, products: Tensor, lengths: Tensor, again: Tensor, which: Tensor) -> "Recognised":
        """Measure how far two passes over one example are apart.

        Args:
            products: The landmarks' with random directions: [landmarks, probes].
            lengths: Of their gradients: [landmarks].
            again: Those of some landmarks in another pass, in another batch: [some, probes].
            which: Which these are: [some].
        """
        apart = float((again - products[which]).abs().max())
        length = float(lengths[which].max())
        rounding = apart / length if length > 0 else 0.0
        least = DIGITS * torch.finfo(products.dtype).eps
        # A dataset that draws random numbers has no example twice.
        limit = TIMES * rounding if TIMES * rounding <= MOST_ROUNDING else 0.0
        return cls(products, lengths, max(limit, least))

    def landmarks(self, products: Tensor) -> Tensor:
        """Which landmark each example is; -1 where it is none: [examples].

        Args:
            products: The examples' with the same directions: [examples, probes].
        """
        apart, nearest = torch.cdist(products.to(self.products), self.products, p=torch.inf).min(1)
        return torch.where(apart <= self.limit * self.lengths[nearest], nearest, -1)

    def is_near(self, products: Tensor, landmarks: Tensor) -> Tensor:
        """Whether an example that is said to be a landmark was so: [examples]."""
        apart = (products.to(self.products) - self.products[landmarks]).abs().amax(1)
        return apart <= MOST_ROUNDING * self.lengths[landmarks]
