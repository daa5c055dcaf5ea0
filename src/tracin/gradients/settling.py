"""Finds the method that is right for parameters whose gradients failed an audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.data import Batch, length, part
from tracin.gradients.audit import audit_factors
from tracin.gradients.coverage import Covered, GradientMethod
from tracin.gradients.distances import lengths_by_name
from tracin.gradients.forms import Dense
from tracin.gradients.method_table import MethodTable
from tracin.gradients.reference import weighted_gradients
from tracin.gradients.repeatable import refuse_unrepeatable
from tracin.gradients.self_check import (
    alone,
    differences,
    refuse_coupled,
    refuse_other_losses,
    weighted_sum,
)
from tracin.gradients.traced_model import TracedModel
from tracin.gradients.visit import Visit
from tracin.gradients.vmapped import vmap_gradients
from tracin.out_of_memory import is_out_of_memory

# What computed the gradients that failed, for reasons in words.
_SOURCES = {
    GradientMethod.FAST: "rules",
    GradientMethod.VMAP: "vmap",
    GradientMethod.LOOP: "backward passes",
}


@final
@dataclass(frozen=True)
class _Independent:
    """Examples that give in a batch what they give one by one."""

    batch: Batch
    factors: Tensor
    gradients: dict[str, Tensor]  # the sum of factor x gradient, by parameter


def slower_methods(
    traced: TracedModel,
    methods: MethodTable,
    batch: Batch,
    failed: Mapping[str, float],
    tolerance: float,
    random: torch.Generator,
) -> dict[str, Covered]:
    """The methods to step down to; empty where no slower one is left.

    Args:
        traced: The model, its loss and its parameters.
        methods: Those in use.
        batch: Where the audit failed.
        failed: Parameter -> how far its gradients are from autograd's, relative to their size.
        tolerance: What rounding explains.
        random: Draws the factors.

    Raises:
        CoupledExamplesError: No method is right: examples depend on each other.
        LossError: The loss draws random numbers, or changes state.
    """
    parameters = {name: traced.parameters[name] for name in failed}
    agreed = _independent(traced, batch, parameters, tolerance, random)
    changed = {}
    for name, gap in failed.items():
        before = methods[name]
        reason = f"in a batch its {_SOURCES[before]} and autograd differ by {gap:.1e}"
        one = {name: parameters[name]}
        if before == GradientMethod.FAST and _holds_by_vmap(traced, one, agreed, tolerance):
            changed[name] = Covered(GradientMethod.VMAP, reason)
        elif before != GradientMethod.LOOP:
            changed[name] = Covered(GradientMethod.LOOP, reason)
    return changed


def _independent(
    traced: TracedModel,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    tolerance: float,
    random: torch.Generator,
) -> list[_Independent]:
    """The stretches of a batch that give what their examples give one by one.

    Raises:
        CoupledExamplesError: There are none, or losses differ.
        LossError: The loss draws random numbers, or changes state.
    """
    model, compute = traced.model, traced.compute
    agreed: list[_Independent] = []
    for rows in _stretches(length(batch)):
        some = part(batch, rows)
        factors = audit_factors(length(some), random)
        apart, losses_alone = alone(model, compute, some, parameters, factors)
        refuse_unrepeatable(traced, part(some, [0]), losses_alone[:1], tolerance)
        together, losses = weighted_gradients(model, compute, some, parameters, factors)
        singles = [[row] for row in range(length(some))]
        refuse_other_losses(traced, some, singles, losses, losses_alone, tolerance)
        if not differences(apart, together, tolerance, parameters):
            agreed.append(_Independent(some, factors, together))
        elif not agreed and rows.stop >= length(batch):
            sizes = lengths_by_name(apart)
            refuse_coupled(traced, some, parameters, factors, sizes, tolerance)
    return agreed


def _holds_by_vmap(
    traced: TracedModel,
    one: Mapping[str, Tensor],
    agreed: Sequence[_Independent],
    tolerance: float,
) -> bool:
    """Whether vmap gives a parameter's gradients on all these examples."""
    for each in agreed:

        def run(visit: Visit, some: Batch = each.batch) -> None:
            for name, rows in vmap_gradients(traced.model, traced.compute, some, one).items():
                visit(name, Dense(rows), 0)

        try:
            found = weighted_sum(run, one, each.factors)
        except Exception as error:  # torch raises all kinds here; another exact method is open
            if is_out_of_memory(error):
                raise
            return False
        if differences(found, {name: each.gradients[name] for name in one}, tolerance, one):
            return False
    return True


def _stretches(examples: int) -> list[slice]:
    """A batch in up to four stretches of at least two examples, or all there are."""
    step = max(2, -(-examples // 4))
    starts = list(range(0, examples, step))
    if len(starts) > 1 and examples - starts[-1] < 2:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], examples], strict=True)]
