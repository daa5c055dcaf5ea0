"""The products of some examples' gradients with the directions of a joint metric."""

from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms import PerExampleGradient, ProductCache
from tracin.preconditioners import JointMetric


@final
class JointSums:
    """Adds up the products, parameter by parameter.

    Args:
        examples: How many there are.
        metric: Whose directions.
    """

    def __init__(self, examples: int, metric: JointMetric) -> None:
        self._examples, self._metric = examples, metric
        self._cache = ProductCache()
        self._products: Tensor | None = None

    def add(self, name: str, form: PerExampleGradient, row: int) -> None:
        """Add one parameter's; the first example of `form` is that row."""
        found = self._metric.products(name, form, self._cache)
        if found is None:
            return
        if self._products is None:
            self._products = found.new_zeros(self._examples, self._metric.directions)
        self._products[row : row + form.examples] += found

    def products(self, like: Tensor) -> Tensor:
        """[examples, directions]; in the kind of another tensor where there are none."""
        if self._products is None:
            return torch.zeros(self._examples, self._metric.directions).to(like)
        return self._products
