"""The check that is always on: on a few examples, a fast way must agree with autograd.

With random factors c, the sum over examples of c_i x gradient_i must equal autograd's gradient of
the sum of c_i x loss_i, for every parameter; and the same from batches of one, which catches
train-mode BatchNorm and every loss that couples examples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.errors import CoupledExamplesError
from tracin.gradients.fast import Compute
from tracin.gradients.forms import Form
from tracin.gradients.ledger import Visit
from tracin.gradients.loop import summed_gradients
from tracin.sharding import is_divided, local, over_ranks, own

# How far two computations of the same gradient may be apart, relative to its length. Attention
# and convolution kernels change with the batch size, by a few units in the last place.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Alone:
    """What autograd says of a few examples, each in a batch of its own.

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
    """One ordinary backward pass an example; all ranks of a sharded model take the same ones."""
    sums = {name: torch.zeros_like(local(parameter)) for name, parameter in parameters.items()}
    norms, losses = [], []
    for example in range(length(batch)):
        single = part(batch, slice(example, example + 1))
        gradients, loss = summed_gradients(model, compute, single, parameters)
        for name, gradient in gradients.items():
            sums[name].add_(gradient, alpha=float(factors[example]))
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
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor,
    apart: Alone,
    tolerance: float,
) -> None:
    """Compare one backward pass over the batch with one an example.

    Raises:
        CoupledExamplesError: They differ.
    """
    together, losses = summed_gradients(model, compute, batch, parameters, factors)
    if are_apart(losses, apart.losses, tolerance):
        raise CoupledExamplesError(
            "The loss of an example depends on the other examples of its batch: alone and "
            f"together, the first two have losses {apart.losses.tolist()} and {losses.tolist()}. "
            "Such are contrastive losses, averages over the batch, and BatchNorm in train mode. "
            "Give a loss whose value for an example depends on that example alone."
        )
    differing = differences(apart.gradients, together, tolerance, parameters)
    if differing:
        name, gap = max(differing.items(), key=lambda item: item[1])
        raise CoupledExamplesError(
            "The loss of an example depends on the other examples of its batch, so it has no "
            f"gradient of its own: alone and together, the gradients of '{name}' differ by "
            f"{gap:.1%}. Such are contrastive losses, averages over the batch, and BatchNorm in "
            "train mode. Give a loss whose value for an example depends on that example alone."
        )


def are_apart(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether values differ by more than rounding, relative to the largest."""
    size = float(expected.abs().max())
    return not float((found - expected).abs().max()) <= tolerance * size + 1e-30


def weighted_sum(
    run: Callable[[Visit], None], parameters: Mapping[str, Tensor], factors: Tensor
) -> dict[str, Tensor]:
    """The sum over examples of factor x gradient that a way gives, by parameter.

    Of a sharded one, this rank's part: the whole is there for one parameter at a time.
    """
    sums = {name: torch.zeros_like(local(parameter)) for name, parameter in parameters.items()}

    def visit(name: str, form: Form) -> None:
        rows = form.dense()
        whole = (factors.to(rows) @ rows).view(parameters[name].shape)
        sums[name] = own(whole, parameters[name]).to(sums[name], copy=is_divided(parameters))

    run(visit)
    return sums


def differences(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    tolerance: float,
    parameters: Mapping[str, Tensor],
) -> dict[str, float]:
    """The parameters whose gradients are further apart than allowed, with their relative gap.

    A gradient that is zero but for rounding (a key's bias under softmax) has no meaningful
    relative gap, so the whole gradient's length sets a floor.
    """
    sizes = _lengths(expected, parameters)
    apart = _lengths({name: found[name] - g for name, g in expected.items()}, parameters)
    whole = sum(size * size for size in sizes.values()) ** 0.5
    gaps = {}
    for name, size in sizes.items():
        gap = apart[name]
        if not gap <= tolerance * size + 0.01 * tolerance * whole:  # NaN is a difference, too
            gaps[name] = gap / size if size else float("inf")
    return gaps


def _lengths(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, float]:
    lengths = {name: float(torch.linalg.vector_norm(one)) for name, one in tensors.items()}
    if not is_divided(parameters):
        return lengths
    squares = over_ranks({name: one * one for name, one in lengths.items()}, parameters)
    return {name: square**0.5 for name, square in squares.items()}


def tolerance_of(parameters: Mapping[str, Tensor], losses: Tensor) -> float:
    """The largest tolerance among the kinds of numbers in play, autocast included."""
    kinds = {parameter.dtype for parameter in parameters.values()} | {losses.dtype}
    kinds.add(_autocast_kind(losses))
    return max(_TOLERANCES.get(kind, 1e-4) for kind in kinds)


def _autocast_kind(losses: Tensor) -> torch.dtype:
    """The lowest precision in the graph of the losses."""
    kind, seen, nodes = losses.dtype, set(), [losses.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for metadata in getattr(node, "_input_metadata", ()):
            if metadata.dtype in (torch.bfloat16, torch.float16):
                return metadata.dtype
        nodes.extend(following for following, _ in node.next_functions)
    return kind
