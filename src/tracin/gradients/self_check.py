"""The check that is always on: on a few examples, a fast way must agree with autograd.

With random factors c, the sum over examples of c_i x gradient_i must equal autograd's gradient of
the sum of c_i x loss_i, for every parameter; and the same from batches of one, which catches
train-mode BatchNorm and every loss that couples examples.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.errors import CoupledExamplesError
from tracin.gradients.fast import Compute
from tracin.gradients.forms import Form
from tracin.gradients.ledger import Visit
from tracin.gradients.loop import summed_gradients

# How far two computations of the same gradient may be apart, relative to its length. Attention
# and convolution kernels change with the batch size, by a few units in the last place.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.05}


def reference(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    factors: Tensor,
    tolerance: float,
) -> dict[str, Tensor]:
    """Autograd's gradient of the sum of factor x loss, after making sure that examples are apart.

    Raises:
        CoupledExamplesError: The same sum from batches of one differs.
    """
    together = summed_gradients(model, compute, batch, parameters, factors)
    apart = {name: torch.zeros_like(gradient) for name, gradient in together.items()}
    for example in range(length(batch)):
        single = part(batch, slice(example, example + 1))
        factor = factors[example : example + 1]
        for name, gradient in summed_gradients(model, compute, single, parameters, factor).items():
            apart[name] += gradient
    differing = differences(apart, together, tolerance)
    if differing:
        name, gap = max(differing.items(), key=lambda item: item[1])
        raise CoupledExamplesError(
            "The loss of an example depends on the other examples of its batch, so it has no "
            f"gradient of its own: alone and together, the gradients of '{name}' differ by "
            f"{gap:.1%}. Such are contrastive losses, averages over the batch, and BatchNorm in "
            "train mode. Give a loss whose value for an example depends on that example alone."
        )
    return together


def weighted_sum(
    run: Callable[[Visit], None], parameters: Mapping[str, Tensor], factors: Tensor
) -> dict[str, Tensor]:
    """The sum over examples of factor x gradient that a way gives, by parameter."""
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def visit(name: str, form: Form) -> None:
        rows = form.dense()
        sums[name] = (factors.to(rows) @ rows).view_as(sums[name]).to(sums[name].dtype)

    run(visit)
    return sums


def differences(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float
) -> dict[str, float]:
    """The parameters whose gradients are further apart than allowed, with their relative gap.

    A gradient that is zero but for rounding (a key's bias under softmax) has no meaningful
    relative gap, so the whole gradient's length sets a floor.
    """
    whole = sum(float(gradient.double().norm()) ** 2 for gradient in expected.values()) ** 0.5
    gaps = {}
    for name, gradient in expected.items():
        size = float(gradient.double().norm())
        gap = float((found[name].double() - gradient.double()).norm())
        if not gap <= tolerance * size + 0.01 * tolerance * whole:  # NaN is a difference, too
            gaps[name] = gap / size if size else float("inf")
    return gaps


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
