"""A few examples alone: each in a batch of its own, by one ordinary backward pass.

What they give must be what they give inside a batch, or else their losses depend on each other:
train-mode BatchNorm, contrastive losses, averages over the batch.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.errors import CoupledExamplesError
from tracin.gradients.compute import Compute
from tracin.gradients.distances import lengths_by_name, too_far, whole_lengths
from tracin.gradients.forms import PerExampleGradient
from tracin.gradients.reference import summed_gradients
from tracin.gradients.second_opinion import gradients_differ, losses_differ
from tracin.gradients.traced_model import TracedModel
from tracin.gradients.visit import Visit
from tracin.precision import lowest, lowest_precision, precision_of
from tracin.sharding import is_divided, local_part, own


def alone(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """The sum over examples of factor x gradient, by one ordinary backward pass per example.

    All ranks of a sharded model take the same examples.

    Returns:
        The sum by parameter, of a sharded one this rank's part, and the losses: [examples].
    """
    return summed_gradients(model, compute, _singles(batch, factors), parameters)


def _singles(batch: Batch, factors: Tensor) -> list[tuple[Batch, Tensor | None]]:
    rows = [slice(row, row + 1) for row in range(length(batch))]
    return [(part(batch, row), factors[row]) for row in rows]


def refuse_coupled(
    traced: TracedModel,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor,
    sizes: Mapping[str, float],
    tolerance: float,
) -> None:
    """Compare one backward pass over the batch with one per example.

    Args:
        traced: The model and its loss.
        batch: A few examples.
        parameters: Those to compare, by name.
        factors: One per example.
        sizes: The length of the sum of factor x gradient that examples alone give, by parameter.
        tolerance: What rounding explains.

    Raises:
        CoupledExamplesError: They differ, in float64 too.
    """
    examples = length(batch)
    # What examples alone give is taken off in the same sums, which are held once.
    parts = [(batch, factors), *_singles(batch, -factors)]
    apart, losses = summed_gradients(traced.model, traced.compute, parts, parameters)
    singles = [[row] for row in range(examples)]
    refuse_other_losses(traced, batch, singles, losses[:examples], losses[examples:], tolerance)
    gaps = whole_lengths(lengths_by_name(apart), parameters)
    differing = too_far(sizes, gaps, tolerance)
    if differing:
        lengths = {name: gaps[name] for name in differing}
        differing = {
            name: differing[name]
            for name in gradients_differ(traced, batch, parameters, factors, lengths, tolerance)
        }
    if differing:
        name, gap = max(differing.items(), key=lambda item: item[1])
        raise CoupledExamplesError(
            "The loss of an example depends on the other examples of its batch, so it has no "
            f"gradient of its own: alone and together, the gradients of '{name}' differ by "
            f"{gap:.1e} of their length, and rounding explains {tolerance:.0e}. {_SUCH}"
        )


def refuse_other_losses(
    traced: TracedModel,
    batch: Batch,
    groups: Sequence[Sequence[int]],
    together: Tensor,
    apart: Tensor,
    tolerance: float,
) -> None:
    """Compare losses in a batch with those of the same examples in smaller batches.

    Args:
        traced: The model and its loss.
        batch: Examples first.
        groups: The rows of each smaller batch.
        together: The losses of these rows in the batch: [rows].
        apart: Their losses in the smaller batches: [rows].
        tolerance: What rounding explains, relative to the largest.

    Raises:
        CoupledExamplesError: They differ, in float64 too.
    """
    apart = apart.to(together)
    if not are_apart(together, apart, tolerance):
        return
    gaps = (together - apart).abs()
    if not losses_differ(traced, batch, groups, float(gaps.max()), tolerance):
        return
    at = int(gaps.argmax())
    raise CoupledExamplesError(
        "The loss of an example depends on the other examples of its batch: one has loss "
        f"{float(apart[at]):.8g} in a smaller batch and {float(together[at]):.8g} with more "
        f"(rounding explains a relative gap of {tolerance:.0e}). {_SUCH}"
    )


_SUCH = (
    "Such are contrastive losses, averages over the batch, and BatchNorm in train mode. Give a "
    "loss whose value for an example depends on that example alone."
)


def are_apart(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether values differ by more than rounding, relative to the largest."""
    gaps = torch.stack([(found - expected).abs().max(), expected.abs().max()])
    gap, size = gaps.tolist()
    return not gap <= tolerance * size + 1e-30


def weighted_sum(
    run: Callable[[Visit], None], parameters: Mapping[str, Tensor], factors: Tensor
) -> dict[str, Tensor]:
    """The sum over examples of factor x gradient that a method gives, by parameter.

    Of a sharded parameter, this rank's part: the whole is there for one parameter at a time.

    Args:
        run: Hands each parameter's gradients to a visitor, those of all examples at once.
        parameters: Those to add up, by name.
        factors: [examples].
    """
    sums = {name: torch.zeros_like(local_part(parameter)) for name, parameter in parameters.items()}

    def visit(name: str, form: PerExampleGradient, row: int) -> None:
        if name in parameters:
            whole = form.weighted_sum(factors).view(parameters[name].shape)
            sums[name] = own(whole, parameters[name]).to(sums[name], copy=is_divided(parameters))

    run(visit)
    return sums


def differences(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    tolerance: float,
    parameters: Mapping[str, Tensor],
) -> dict[str, float]:
    """The parameters whose gradients are further apart than allowed, with their relative gap."""
    apart = {name: found[name] - gradient for name, gradient in expected.items()}
    sizes = whole_lengths(lengths_by_name(expected), parameters)
    return too_far(sizes, whole_lengths(lengths_by_name(apart), parameters), tolerance)


def tolerance_of(parameters: Mapping[str, Tensor], losses: Tensor) -> float:
    """What rounding explains, by the lowest precision in play: autocast and casts included."""
    kinds = {precision_of(parameter.dtype) for parameter in parameters.values()}
    return lowest([lowest_precision(losses), *kinds], losses.device).tolerance
