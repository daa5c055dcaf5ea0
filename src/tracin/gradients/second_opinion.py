"""Asks float64 where two computations in float32 differ: rounding shrinks there, all else stays.

In a deep network some input of a ReLU is always zero but for rounding, and kernels for other batch
sizes round it to another sign; the loss of a fitted example, or the gradient of a parameter that
changes nothing, is rounding alone.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tracin.data import Batch, part
from tracin.gradients.distances import lengths_by_name, too_far
from tracin.gradients.reference import weighted_gradients_in_double
from tracin.gradients.traced_model import TracedModel

# Float64 rounds 5e8 times as finely as float32. A gap that does not shrink much is no rounding.
SHRINK = 1e-3

# A method may round this much worse than autograd does: it adds in another order.
WORSE = 8


def losses_differ(
    traced: TracedModel,
    batch: Batch,
    groups: Sequence[Sequence[int]],
    gap: float,
    tolerance: float,
) -> bool:
    """Whether losses in a batch and in groups of its examples differ in float64, too.

    Args:
        traced: The model and its loss.
        batch: Examples first.
        groups: The rows of each group.
        gap: The largest difference in the precision of the run.
        tolerance: What rounding explains there, relative to the largest loss.
    """
    if traced.is_sharded:
        return True  # ranks pass together, and one alone may ask
    whole = _in_double(traced, batch, {})
    if whole is None:
        return True
    apart, sizes = [], []
    for rows in groups:
        some = _in_double(traced, part(batch, torch.tensor(rows)), {})
        if some is None:
            return True
        apart.append(float((some[1] - whole[1][list(rows)]).abs().max()))
        sizes.append(float(some[1].abs().max()))
    return not max(apart) <= max(SHRINK * gap, tolerance * max(sizes))


def gradients_differ(
    traced: TracedModel,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor,
    gaps: Mapping[str, float],
    tolerance: float,
) -> dict[str, float]:
    """The parameters whose gradients differ in float64, too, between a batch and single examples.

    Args:
        traced: The model and its loss.
        batch: A few examples.
        parameters: The traced ones, by name.
        factors: One per example.
        gaps: Those that differ in the precision of the run, with the length of the difference.
        tolerance: What rounding explains there, relative to a gradient's length.
    """
    if traced.is_sharded:
        return dict(gaps)
    whole = _in_double(traced, batch, parameters, factors)
    if whole is None:
        return dict(gaps)
    apart = {name: -gradient for name, gradient in whole[0].items()}
    for row in range(len(factors)):
        rows = slice(row, row + 1)
        single = _in_double(traced, part(batch, rows), parameters, factors[rows])
        if single is None:
            return dict(gaps)
        for name, gradient in single[0].items():
            apart[name] += gradient
    distances = lengths_by_name(apart)
    left = too_far(lengths_by_name(whole[0]), distances, tolerance)
    return {
        name: gap for name, gap in gaps.items() if name in left and distances[name] > SHRINK * gap
    }


def beyond_rounding(
    traced: TracedModel,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor,
    found: Mapping[str, Tensor],
    expected: Sequence[Mapping[str, Tensor]],
) -> set[str]:
    """The parameters for which a method is further from float64's gradient than autograd is.

    Args:
        traced: The model and its loss.
        batch: Examples first.
        parameters: Those in question, by name.
        factors: One per example.
        found: The sum of factor x gradient that the method gives, by parameter.
        expected: The same by autograd in the precision of the run, once or more: of a gradient that
            is rounding alone, one computation may be exact by chance.
    """
    if traced.is_sharded:
        return set(parameters)
    exact = _in_double(traced, batch, parameters, factors)
    if exact is None:
        return set(parameters)
    wide = {name: gradient.flatten() for name, gradient in exact[0].items()}
    ours = lengths_by_name(
        {name: found[name].flatten().to(one) - one for name, one in wide.items()}
    )
    theirs = [
        lengths_by_name({name: each[name].flatten().to(one) - one for name, one in wide.items()})
        for each in expected
    ]
    return {name for name in wide if not ours[name] <= WORSE * max(each[name] for each in theirs)}


def _in_double(
    traced: TracedModel,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor] | None:
    return weighted_gradients_in_double(traced.model, traced.compute, batch, parameters, factors)
