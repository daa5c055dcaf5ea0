"""A few examples alone: each in a batch of its own, by one ordinary backward pass.

What they give must be what they give inside a batch, or else their losses depend on each other:
train-mode BatchNorm, contrastive losses, averages over the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.errors import CoupledExamplesError
from tracin.gradients.audit import lengths_by_name, too_far
from tracin.gradients.compute import Compute
from tracin.gradients.forms import PerExampleGradient
from tracin.gradients.reference import weighted_gradients
from tracin.gradients.second_opinion import gradients_differ, losses_differ
from tracin.gradients.traced_model import TracedModel
from tracin.gradients.visit import Visit
from tracin.precision import lowest, lowest_precision, precision_of
from tracin.sharding import is_divided, local_part, over_ranks, own


@dataclass(frozen=True)
class Alone:
    """What autograd gives for a few examples, each in a batch of its own.

    Attributes:
        gradients: The sum over examples of factor x gradient, by parameter; of a sharded one,
            this rank's part.
        norms: The squared length of each example's whole gradient: [examples].
        losses: [examples].
    """

    gradients: dict[str, Tensor]
    norms: Tensor
    losses: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether there is anything to compare with."""
        return bool(torch.isfinite(self.norms).all() and torch.isfinite(self.losses).all())


def alone(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor,
) -> Alone:
    """One ordinary backward pass per example; all ranks of a sharded model take the same ones."""
    sums = {name: torch.zeros_like(local_part(parameter)) for name, parameter in parameters.items()}
    norms, losses = [], []
    for example, factor in zip(range(length(batch)), factors.tolist(), strict=False):
        single = part(batch, slice(example, example + 1))
        gradients, loss = weighted_gradients(model, compute, single, parameters)
        for name, gradient in gradients.items():
            sums[name].add_(gradient, alpha=factor)
        norms.append(_squared_length(gradients, parameters, loss))
        losses.append(loss)
    return Alone(sums, torch.stack([torch.as_tensor(norm) for norm in norms]), torch.cat(losses))


def _squared_length(
    gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor], like: Tensor
) -> Tensor | float:
    squares = {name: torch.linalg.vector_norm(g).square() for name, g in gradients.items()}
    if not is_divided(parameters):
        return sum(squares.values())
    parts = {name: float(square) for name, square in squares.items()}
    return torch.tensor(sum(over_ranks(parts, parameters).values()), device=like.device)


def refuse_coupled(
    traced: TracedModel,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor,
    apart: Alone,
    tolerance: float,
) -> dict[str, Tensor]:
    """Compare one backward pass over the batch with one per example.

    Returns:
        The sum of factor x gradient of the one over the batch, by parameter.

    Raises:
        CoupledExamplesError: They differ, in float64 too.
    """
    together, losses = weighted_gradients(traced.model, traced.compute, batch, parameters, factors)
    singles = [[row] for row in range(length(batch))]
    refuse_other_losses(traced, batch, singles, losses, apart.losses, tolerance)
    differing = differences(apart.gradients, together, tolerance, parameters)
    if differing:
        lengths = _lengths(
            {name: apart.gradients[name] - together[name] for name in differing}, parameters
        )
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
    return together


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
        parameters: The parameters, by name.
        factors: [examples].
    """
    sums = {name: torch.zeros_like(local_part(parameter)) for name, parameter in parameters.items()}

    def visit(name: str, form: PerExampleGradient, row: int) -> None:
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
    sizes = _lengths(expected, parameters)
    apart = _lengths({name: found[name] - g for name, g in expected.items()}, parameters)
    return too_far(sizes, apart, tolerance)


def _lengths(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, float]:
    lengths = lengths_by_name(tensors)
    if not is_divided(parameters):
        return lengths
    squares = over_ranks({name: one * one for name, one in lengths.items()}, parameters)
    return {name: square**0.5 for name, square in squares.items()}


def tolerance_of(parameters: Mapping[str, Tensor], losses: Tensor) -> float:
    """What rounding explains, by the lowest precision in play: autocast and casts included."""
    kinds = {precision_of(parameter.dtype) for parameter in parameters.values()}
    return lowest([lowest_precision(losses), *kinds], losses.device).tolerance
