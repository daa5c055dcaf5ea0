"""The audit: the gradients that a pass gives for a batch, compared with autograd's.

With random factors c, one per example, the sum of c_i x gradient_i must equal autograd's gradient
of the sum of c_i x loss_i, for each parameter by itself. Two examples whose gradients were mixed up
change that sum by |c_i - c_j| |g_i - g_j|, far above rounding, whichever call moved them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.gradients.compute import Compute
from tracin.gradients.forms import PerExampleGradient
from tracin.gradients.reference import summed_gradients
from tracin.gradients.remainder import Remainder
from tracin.gradients.visit import Visit


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
        gradients: The sum of factor x gradient, by parameter; an audit takes those of a pass off,
            and keeps few of them.
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
        parts = []
        for group in groups:
            order = torch.tensor(group)
            some = batch if group == list(range(length(batch))) else part(batch, order)
            parts.append((some, factors[order - window.start]))
        sums, losses = summed_gradients(model, compute, parts, parameters)
        return cls(window, factors, sums, groups, losses)


@final
class Audit:
    """Takes what a pass gives for the examples of a reference off its gradients, and compares.

    Args:
        reference: What autograd gives; its gradients are written to.
        tolerance: How far two computations of the same gradient may be apart, relative to it.
        random: Of large gradients, products with random vectors are held, drawn from here.
        kept: Parameters whose sums are kept apart in `found`, and their reference as it is.
    """

    def __init__(
        self,
        reference: Reference,
        tolerance: float,
        random: torch.Generator,
        kept: Collection[str] = (),
    ) -> None:
        # No audit is of a model that is divided, so that the parameters need not be known.
        self._remainder = Remainder(reference.gradients, {}, kept, random)
        # Those of a large model take as much memory as it does, through the whole pass.
        whole = {name: each for name, each in reference.gradients.items() if name in kept}
        self.reference = replace(reference, gradients=whole)
        self.tolerance = tolerance

    def taking(self, visit: Visit) -> Visit:
        """The same visitor; this audit takes whatever it takes."""

        def take_and_visit(name: str, form: PerExampleGradient, row: int) -> None:
            self.take(name, form, row)
            visit(name, form, row)

        return take_and_visit

    def take(self, name: str, form: PerExampleGradient, row: int) -> None:
        """Take one parameter's gradients; the first example of `form` is that row of the batch."""
        window = self.reference.window
        start, stop = max(row, window.start), min(row + form.examples, window.stop)
        if start >= stop:
            return
        some = form if stop - start == form.examples else form.part(start - row, stop - row)
        factors = self.reference.factors[start - window.start : stop - window.start]
        self._remainder.take(name, some, factors)

    @property
    def found(self) -> dict[str, Tensor]:
        """The sum of factor x gradient that the pass gave, of each kept parameter."""
        return self._remainder.found

    def gaps(self, leave_out: Collection[str] = ()) -> dict[str, float] | None:
        """The parameters that differ by more than rounding, with their relative gap.

        Args:
            leave_out: Parameters that the pass skipped.

        Returns:
            None if a wanted gradient is not finite: there is nothing to compare with.
        """
        return self._remainder.gaps(self.tolerance, leave_out)
