"""Asks float64 where two computations in float32 differ: rounding shrinks there, all else stays.

In a deep network some input of a ReLU is always zero but for rounding, and kernels for other batch
sizes round it to another sign; the loss of a fitted example, or the gradient of a parameter that
changes nothing, is rounding alone.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, part
from tracin.gradients.audit import too_far
from tracin.gradients.compute import Compute
from tracin.gradients.reference import weighted_gradients_in_double
from tracin.sharding import is_divided
from tracin.torch_internals import lengths_of

# Float64 rounds 5e8 times as finely as float32. A gap that does not shrink much is no rounding.
SHRINK = 1e-3

# A method may round this much worse than autograd does: it adds in another order.
WORSE = 8


def losses_differ(
    model: Module,
    compute: Compute,
    batch: Batch,
    groups: Sequence[Sequence[int]],
    gap: float,
    tolerance: float,
) -> bool:
    """Whether losses in a batch and in groups of its examples differ in float64, too.

    Args:
        model: In eval mode.
        compute: The per-example loss.
        batch: Examples first.
        groups: The rows of each group.
        gap: The largest difference in the precision of the run.
        tolerance: What rounding explains there, relative to the largest loss.
    """
    whole = weighted_gradients_in_double(model, compute, batch, {})
    if whole is None:
        return True
    apart, sizes = [], []
    for rows in groups:
        some = weighted_gradients_in_double(model, compute, part(batch, torch.tensor(rows)), {})
        if some is None:
            return True
        apart.append(float((some[1] - whole[1][list(rows)]).abs().max()))
        sizes.append(float(some[1].abs().max()))
    return not max(apart) <= max(SHRINK * gap, tolerance * max(sizes))


def gradients_differ(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor,
    gaps: Mapping[str, float],
    tolerance: float,
) -> dict[str, float]:
    """The parameters whose gradients differ in float64, too, between a batch and single examples.

    Args:
        model: In eval mode.
        compute: The per-example loss.
        batch: A few examples.
        parameters: The traced ones, by name.
        factors: One per example.
        gaps: Those that differ in the precision of the run, with the length of the difference.
        tolerance: What rounding explains there, relative to a gradient's length.
    """
    if is_divided(parameters):
        return dict(gaps)
    whole = weighted_gradients_in_double(model, compute, batch, parameters, factors)
    if whole is None:
        return dict(gaps)
    apart = {name: -gradient for name, gradient in whole[0].items()}
    for row in range(len(factors)):
        rows = slice(row, row + 1)
        single = weighted_gradients_in_double(
            model, compute, part(batch, rows), parameters, factors[rows]
        )
        if single is None:
            return dict(gaps)
        for name, gradient in single[0].items():
            apart[name] += gradient
    distances = _lengths(apart)
    left = too_far(_lengths(whole[0]), distances, tolerance)
    return {
        name: gap for name, gap in gaps.items() if name in left and distances[name] > SHRINK * gap
    }


def beyond_rounding(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor,
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> set[str]:
    """The parameters for which a method is further from float64's gradient than autograd is.

    Args:
        model: In eval mode.
        compute: The per-example loss.
        batch: Examples first.
        parameters: Those in question, by name.
        factors: One per example.
        found: The sum of factor x gradient that the method gives, by parameter.
        expected: The same by autograd, in the precision of the run.
    """
    if is_divided(parameters):
        return set(parameters)
    exact = weighted_gradients_in_double(model, compute, batch, parameters, factors)
    if exact is None:
        return set(parameters)
    wide = {name: gradient.flatten() for name, gradient in exact[0].items()}
    ours = _lengths({name: found[name].flatten().to(one) - one for name, one in wide.items()})
    theirs = _lengths({name: expected[name].flatten().to(one) - one for name, one in wide.items()})
    return {name for name in wide if not ours[name] <= WORSE * theirs[name]}


def _lengths(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    return dict(zip(tensors, lengths_of(list(tensors.values())).tolist(), strict=True))
