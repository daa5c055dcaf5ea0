"""Gradients of some examples, held in the form that is cheapest to multiply with many batches."""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from tracin.errors import PreconditionerError
from tracin.gradients.forms import (
    Dense,
    OuterProduct,
    PerExampleGradient,
    ProductCache,
    as_query,
    pairs,
)
from tracin.preconditioners.kept_metrics import numbers_in
from tracin.preconditioners.preconditioner import Scaling

# Numbers that are held at most: 8 GiB in float32.
MOST = 1 << 31


@final
class Landmarks:
    """The gradients of all landmarks, by parameter: factors where these are cheaper.

    Args:
        scaling: What products with them are under, in which they are held; None for nothing.

    Attributes:
        scaling: What is given.
        held: How many numbers they have together.
        examples: How many landmarks there are.
    """

    def __init__(self, scaling: Scaling | None = None) -> None:
        self.scaling = scaling
        self._forms: dict[str, list[tuple[int, PerExampleGradient]]] = {}
        self.held = 0
        self.examples = 0

    def batch(self, examples: int) -> "LandmarkBatch":
        """Begin a batch of so many examples."""
        return LandmarkBatch(self, examples)

    def add(self, forms: Iterable[tuple[str, int, PerExampleGradient]], examples: int) -> None:
        """Add a whole batch.

        Raises:
            PreconditionerError: The gradients of all do not fit.
        """
        for name, row, form in forms:
            self.held += numbers_in(form)
            self._forms.setdefault(name, []).append((self.examples + row, form))
        self.examples += examples
        if self.held > MOST:
            raise PreconditionerError(
                f"The gradients of {self.examples} landmarks take {self.held:,} numbers, and at "
                f"most {MOST:,} are held. Use fewer, tracin.Kernel(landmarks="
                f"{max(1, self.examples // 2)}), trace fewer parameters, such as "
                'parameters="last", or use tracin.KFAC().'
            )

    def join(self) -> None:
        """Make one form of batches alike: a weight and its bias then share a product."""
        for name, each in self._forms.items():
            forms = [form for _, form in each]
            rows = [row for row, _ in each]
            is_whole = sum(form.examples for form in forms) == self.examples and rows[0] == 0
            if not is_whole or len(forms) == 1:
                continue
            if all(isinstance(form, OuterProduct) and form.positions == 1 for form in forms):
                left, right = (
                    torch.cat([getattr(form, side) for form in forms]) for side in ("left", "right")
                )
                self._forms[name] = [(0, OuterProduct(left, right))]
            elif all(isinstance(form, Dense) for form in forms):
                self._forms[name] = [(0, Dense(torch.cat([form.dense() for form in forms])))]

    def products(self, name: str, form: PerExampleGradient, cache: ProductCache) -> Tensor | None:
        """The products of a parameter's gradients with the landmarks': [examples, landmarks]."""
        held = self._forms.get(name, [])
        if len(held) == 1 and held[0][1].examples == self.examples:
            return pairs(form, held[0][1], cache)
        total: Tensor | None = None
        for row, other in held:
            found = pairs(form, other)
            if total is None:
                total = found.new_zeros(form.examples, self.examples)
            total[:, row : row + other.examples] += found
        return total

    def gram(self) -> Tensor:
        """The products of all with all: [landmarks, landmarks]."""
        total: Tensor | None = None
        plain = None if self.scaling is None else self.scaling.inverse()
        for name, held in self._forms.items():
            for row, scaled in held:
                form = scaled if plain is None else plain.scaled(name, scaled)[name]
                # A form of one example is its own product, not to be shared with the next name's.
                found = self.products(name, form, ProductCache())
                assert found is not None
                if total is None:
                    total = found.new_zeros(self.examples, self.examples)
                total[row : row + form.examples] += found
        return torch.zeros(self.examples, self.examples) if total is None else total


@final
class LandmarkBatch:
    """The gradients of one batch of landmarks."""

    def __init__(self, whole: Landmarks, examples: int) -> None:
        self._whole, self._examples = whole, examples
        self._forms: list[tuple[str, int, PerExampleGradient]] = []

    def visit(self, name: str, form: PerExampleGradient, row: int) -> None:
        """Take one parameter's gradients; the first example of `form` is that row of the batch."""
        self._forms.append((name, row, form))

    @torch.no_grad()
    def commit(self) -> None:
        """Add the batch to those before."""
        found = [(name, row, as_query(self._scaled(name, form))) for name, row, form in self._forms]
        self._whole.add(found, self._examples)

    def _scaled(self, name: str, form: PerExampleGradient) -> PerExampleGradient:
        scaling = self._whole.scaling
        return form if scaling is None else scaling.scaled(name, form)[name]
