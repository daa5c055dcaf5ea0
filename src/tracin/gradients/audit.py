"""The audit: the gradients that a pass gives for a batch, compared with autograd's.

With random factors c, one per example, the sum of c_i x gradient_i must equal autograd's gradient
of the sum of c_i x loss_i, for each parameter by itself. Two examples whose gradients were mixed up
change that sum by |c_i - c_j| |g_i - g_j|, far above rounding, whichever call moved them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.gradients.compute import Compute
from tracin.gradients.forms import PerExampleGradient
from tracin.gradients.reference import weighted_gradients
from tracin.gradients.visit import Visit
from tracin.torch_internals import lengths_of

# A gradient that is zero but for rounding (a key's bias under softmax) has no meaningful relative
# gap, so the length of the whole gradient sets a floor.
FLOOR = 0.01


def audit_factors(examples: int, generator: torch.Generator) -> Tensor:
    """A random sign times a uniform number in [0.5, 1.5], per example, in float64: [examples]."""
    signs = torch.randint(2, (examples,), generator=generator).double().mul_(2).sub_(1)
    return signs * torch.rand(examples, generator=generator, dtype=torch.float64).add_(0.5)


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """What autograd gives for a stretch of a batch.

    Attributes:
        window: The examples' rows in the batch.
        factors: One per example of the window.
        gradients: The sum of factor x gradient, by parameter.
        groups: The rows of the smaller batches that it was computed in.
        losses: Those of the groups' rows, one group after the other: [examples].
    """

    window: range
    factors: Tensor
    gradients: dict[str, Tensor]
    groups: list[list[int]]
    losses: Tensor

    @classmethod
    def of(
        cls,
        model: Module,
        compute: Compute,
        batch: Batch,
        parameters: Mapping[str, Tensor],
        groups: list[list[int]],
        generator: torch.Generator,
    ) -> "Reference":
        """Take one ordinary forward and backward pass over each group.

        Args:
            model: In eval mode.
            compute: The per-example loss.
            batch: Examples first.
            parameters: Those to differentiate by, by name.
            groups: Rows of a stretch of the batch. In other batches than theirs and in another
                order, losses that depend on the rest of the batch, or on an example's place in
                it, differ.
            generator: Of the factors.
        """
        rows = [row for group in groups for row in group]
        window = range(min(rows), max(rows) + 1)
        factors = audit_factors(len(window), generator)
        sums: dict[str, Tensor] = {}
        losses = []
        for group in groups:
            order = torch.tensor(group)
            some = batch if group == list(range(length(batch))) else part(batch, order)
            places = order - window.start
            gradients, own = weighted_gradients(model, compute, some, parameters, factors[places])
            losses.append(own)
            for name, gradient in gradients.items():
                sums[name] = gradient if name not in sums else sums[name].add_(gradient)
        return cls(window, factors, sums, groups, torch.cat(losses))


@final
class Audit:
    """Adds up what a pass gives for the examples of a reference, and compares.

    Attributes:
        reference: What autograd gives.
        tolerance: How far two computations of the same gradient may be apart, relative to it.
    """

    def __init__(self, reference: Reference, tolerance: float) -> None:
        self.reference = reference
        self.tolerance = tolerance
        self._sums: dict[str, Tensor] = {}

    def taking(self, visit: Visit) -> Visit:
        """The same visitor; this audit takes whatever it takes."""

        def take_and_visit(name: str, form: PerExampleGradient, row: int) -> None:
            self.take(name, form, row)
            visit(name, form, row)

        return take_and_visit

    @torch.no_grad()
    def take(self, name: str, form: PerExampleGradient, row: int) -> None:
        """Add one parameter's gradients; the first example of `form` is that row of the batch."""
        window = self.reference.window
        start, stop = max(row, window.start), min(row + form.examples, window.stop)
        if start >= stop:
            return
        some = form if stop - start == form.examples else form.part(start - row, stop - row)
        found = some.weighted_sum(
            self.reference.factors[start - window.start : stop - window.start]
        )
        self._sums[name] = found if name not in self._sums else self._sums[name].add_(found)

    @property
    def found(self) -> dict[str, Tensor]:
        """The sum of factor x gradient that the pass gave, by parameter."""
        return {
            name: self._sums.get(name, torch.zeros_like(gradient))
            for name, gradient in self.reference.gradients.items()
        }

    def gaps(self, leave_out: Collection[str] = ()) -> dict[str, float] | None:
        """The parameters that differ by more than rounding, with their relative gap.

        Args:
            leave_out: Parameters that the pass skipped.

        Returns:
            None if a wanted gradient is not finite: there is nothing to compare with.
        """
        wanted = {
            name: gradient.flatten()
            for name, gradient in self.reference.gradients.items()
            if name not in leave_out
        }
        if not wanted:
            return {}
        apart = [
            gradient if name not in self._sums else self._sums[name] - gradient
            for name, gradient in wanted.items()
        ]
        # One look at the device for all of them.
        lengths = lengths_of([*wanted.values(), *apart]).tolist()
        sizes, distances = lengths[: len(wanted)], lengths[len(wanted) :]
        if not all(map(isfinite, sizes)):
            return None
        return too_far(
            dict(zip(wanted, sizes, strict=True)),
            dict(zip(wanted, distances, strict=True)),
            self.tolerance,
        )


def lengths_by_name(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The length of each tensor, in one look at the device."""
    found = lengths_of(list(tensors.values())).tolist() if tensors else []
    return dict(zip(tensors, found, strict=True))


def too_far(
    sizes: Mapping[str, float], apart: Mapping[str, float], tolerance: float
) -> dict[str, float]:
    """Where a distance is more than rounding explains, relative to the size."""
    whole = sum(size * size for size in sizes.values()) ** 0.5
    found = {}
    for name, size in sizes.items():
        # Written so that NaN counts as a difference.
        if not apart[name] <= tolerance * (size + FLOOR * whole):
            found[name] = apart[name] / size if size else float("inf")
    return found
