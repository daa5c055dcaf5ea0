"""The products of some examples' gradients with given directions."""

from typing import Protocol, final

import torch
from torch import Tensor

from tracin.gradients.forms import PerExampleGradient, ProductCache


class HasDirections(Protocol):
    """Gradients that products are taken with, such as landmarks or a joint metric."""

    @property
    def directions(self) -> int:
        """How many there are."""
        ...

    def products(self, name: str, form: PerExampleGradient, cache: ProductCache) -> Tensor | None:
        """One parameter's share of the products with them: [examples, directions]; None if zero."""
        ...


@final
class JointSums:
    """Adds up the products, parameter by parameter.

    Args:
        examples: How many there are.
        directions: What products are with.
    """

    def __init__(self, examples: int, directions: HasDirections) -> None:
        self._examples, self._directions = examples, directions
        self._cache = ProductCache()
        self._products: Tensor | None = None

    def add(self, name: str, form: PerExampleGradient, row: int) -> None:
        """Add one parameter's; the first example of `form` is that row."""
        found = self._directions.products(name, form, self._cache)
        if found is None:
            return
        if self._products is None:
            self._products = found.new_zeros(self._examples, self._directions.directions)
        self._products[row : row + form.examples] += found

    def products(self, like: Tensor | None = None) -> Tensor:
        """[examples, directions]; in the kind of another tensor where there are none."""
        if self._products is not None:
            return self._products
        zeros = torch.zeros(self._examples, self._directions.directions)
        return zeros if like is None else zeros.to(like)
