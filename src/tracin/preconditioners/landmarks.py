"""Gradients of some examples, held in the form that is cheapest to multiply with many batches."""

from collections.abc import Iterable, Mapping
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
from tracin.preconditioners.joint_sums import JointSums
from tracin.preconditioners.kept_metrics import numbers_in
from tracin.preconditioners.preconditioner import Scaling
from tracin.preconditioners.probes import PROBES, probes_for

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
        directions: How many gradients products are taken with: random ones follow the landmarks'.
    """

    def __init__(self, scaling: Scaling | None = None) -> None:
        self.scaling = scaling
        self._forms: dict[str, list[tuple[int, PerExampleGradient]]] = {}
        self.held = 0
        self.examples = self.directions = 0

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
        self.directions = self.examples
        if self.held > MOST:
            raise PreconditionerError(
                f"The gradients of {self.examples} landmarks take {self.held:,} numbers, and at "
                f"most {MOST:,} are held. Use fewer, tracin.Kernel(landmarks="
                f"{max(1, self.examples // 2)}), trace fewer parameters, such as "
                'parameters="last", or use tracin.KFAC().'
            )

    def add_probes(self, parameters: Mapping[str, Tensor]) -> None:
        """Add random directions behind the landmarks' gradients, once all of these are there."""
        generator = torch.Generator().manual_seed(0)
        root = None if self.scaling is None else self.scaling.root()
        for name, parameter in parameters.items():
            held = self._forms.setdefault(name, [])
            forms = [form for _, form in held]
            probes = probes_for(forms, parameter, generator)
            if root is not None:
                probes = as_query(root.factored(name, probes)[name], is_roomy=False)
            held.append((self.examples, probes))
            self.held += numbers_in(probes)
        self.directions += PROBES

    def join(self) -> None:
        """Make one form of batches alike: a weight and its bias then share a product."""
        for name, each in self._forms.items():
            forms = [form for _, form in each]
            rows = [row for row, _ in each]
            is_whole = sum(form.examples for form in forms) == self.directions and rows[0] == 0
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
        """The products of a parameter's gradients with the directions: [examples, directions]."""
        held = self._forms.get(name, [])
        if len(held) == 1 and held[0][1].examples == self.directions:
            return pairs(form, held[0][1], cache)
        total: Tensor | None = None
        for row, other in held:
            found = pairs(form, other)
            if total is None:
                total = found.new_zeros(form.examples, self.directions)
            total[:, row : row + other.examples] += found
        return total

    def own_products(self) -> Tensor:
        """The products of the landmarks themselves with the directions: [landmarks, directions]."""
        total: Tensor | None = None
        plain = None if self.scaling is None else self.scaling.inverse()
        for name, held in self._forms.items():
            for row, scaled in held:
                if row >= self.examples:
                    continue  # the random ones
                form = scaled if plain is None else plain.scaled(name, scaled)[name]
                # Joined with random ones; a form of one example is its own product, not to be
                # shared with the next name's.
                form = form.part(0, min(form.examples, self.examples - row))
                found = self.products(name, form, ProductCache())
                assert found is not None
                if total is None:
                    total = found.new_zeros(self.examples, self.directions)
                total[row : row + form.examples] += found
        return torch.zeros(self.examples, self.directions) if total is None else total


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


@final
class FitProducts:
    """The products of other examples' gradients with the landmarks' directions.

    Args:
        landmarks: Which they are.
    """

    def __init__(self, landmarks: Landmarks) -> None:
        self._landmarks = landmarks
        self._found: list[Tensor] = []

    def batch(self, examples: int) -> "FitProductsBatch":
        """Begin a batch of so many examples."""
        return FitProductsBatch(JointSums(examples, self._landmarks), self._found)

    @property
    def products(self) -> Tensor:
        """[examples, directions]."""
        return torch.cat(self._found)


@final
class FitProductsBatch:
    """The products of one batch."""

    def __init__(self, sums: JointSums, found: list[Tensor]) -> None:
        self._sums, self._found = sums, found

    @torch.no_grad()
    def visit(self, name: str, form: PerExampleGradient, row: int) -> None:
        """Take one parameter's gradients; the first example of `form` is that row of the batch."""
        self._sums.add(name, form, row)

    def commit(self) -> None:
        """Add the batch to those before."""
        self._found.append(self._sums.products())
