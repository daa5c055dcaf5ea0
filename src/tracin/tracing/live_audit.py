"""The audit of live steps: whose share is whose, measured against autograd while training runs.

The shares of a step add up to its gradient even if two examples have each other's. So, on traced
steps 1, 2, 4, 8, ..., the model's calls are repeated on copies of their inputs, at the weights and
with the random numbers of the step, with random gradients of its outputs: the sum of c_i x share_i,
one random c_i per example, must equal autograd's gradient where c_i multiplies example i's rows of
the outputs. That holds where no example's outputs depend on another; BatchNorm therefore runs on
its running statistics. Outputs without a dimension of examples, such as a loss computed within the
model, are replaced by the queries' loss of the same training examples.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, final

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from tracin.checkpoints import untouched
from tracin.data import Batch, content_of
from tracin.data.batches import leaves as leaves_of
from tracin.data.batches import mapped
from tracin.gradients.accumulator import GradientAccumulator
from tracin.gradients.compute import Compute
from tracin.gradients.forms import PerExampleGradient
from tracin.gradients.grad_hook import new_anchor
from tracin.gradients.layouts import ShapeProbe
from tracin.gradients.watch import FunctionWatch
from tracin.precision import lowest_precision
from tracin.tracing.shares import buffers_kept

# A gradient that is zero but for rounding has no relative gap: the whole gradient sets a floor.
FLOOR = 0.01


@final
@dataclass(frozen=True, eq=False)
class Call:
    """One call of the model in a traced block, to be repeated.

    Attributes:
        args: Copies of what it was given by position.
        kwargs: Copies of what it was given by name.
        autocast: The dtype of mixed precision; None where it was off.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    autocast: torch.dtype | None


Run = Callable[[Mapping[str, Tensor]], Any]  # with these parameters in the model -> its outputs


@contextmanager
def captured(model: Module, calls: list[Call]) -> Iterator[None]:
    """Take copies of what the model is called with."""

    def take(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        device = next(model.parameters()).device.type
        is_on = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_on else None
        calls.append(Call(mapped(_copy, args), mapped(_copy, kwargs), dtype))

    # First of all hooks: others may change the inputs, and will do so again.
    handle = model.register_forward_pre_hook(take, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def repeated(model: Module, calls: list[Call]) -> Run:
    """The calls of a block once more."""

    def run(parameters: Mapping[str, Tensor]) -> Any:
        device = next(iter(parameters.values())).device.type
        outputs = []
        for call in calls:
            # Copies again: a model may write into its inputs, and there are two passes.
            args, kwargs = mapped(_copy, call.args), mapped(_copy, dict(call.kwargs))
            with torch.autocast(device, call.autocast, enabled=call.autocast is not None):
                outputs.append(functional_call(model, dict(parameters), args, kwargs))
        return outputs

    return run


def asked(model: Module, compute: Compute, batch: Batch) -> Run:
    """The per-example losses of a batch."""

    def run(parameters: Mapping[str, Tensor]) -> Any:
        class Swapped(Module):
            """The model with other parameters, for a loss that calls it."""

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return functional_call(model, dict(parameters), args, kwargs)

            def __getattr__(self, name: str) -> Any:
                return getattr(model, name)

        return compute(Swapped(), content_of(batch))

    return run


def gaps(
    model: Module,
    parameters: Mapping[str, Tensor],
    trial: ShapeProbe,
    examples: int,
    run: Run,
    *,
    seed: int,
    is_eval: bool,
) -> dict[str, float] | None:
    """The parameters whose shares are not what autograd says, with their relative gap.

    Args:
        model: The model.
        parameters: Those that are traced.
        trial: What each call does with them.
        examples: How many the batch has.
        run: What is computed.
        seed: Of the random factors and output gradients.
        is_eval: Whether the whole model is in eval mode, and not BatchNorm alone.

    Returns:
        None where no output has a dimension of examples, so nothing was compared.
    """
    leaves = {name: each.detach().requires_grad_() for name, each in parameters.items()}
    device = next(iter(leaves.values())).device
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (examples,), generator=generator).double().mul_(2).sub_(1)
    factors = signs * torch.rand(examples, generator=generator, dtype=torch.float64).add_(0.5)
    forms: dict[str, PerExampleGradient] = {}
    ledger = GradientAccumulator(leaves, lambda name, form, row: forms.update({name: form}))
    with _shadow(model, is_eval=is_eval):
        anchor = new_anchor(device)
        watch = FunctionWatch(leaves, trial, examples, anchor, ledger, is_live=True)
        watch.begin()
        with watch:
            rows = _rows(run(leaves), examples)
        if not rows:
            return None
        deltas = [torch.randn(each.shape, generator=generator).to(each) for each, _ in rows]
        inputs = [*leaves.values(), anchor]
        torch.autograd.grad([each for each, _ in rows], inputs, deltas, allow_unused=True)
        ledger.close()
        found = {name: form.weighted_sum(factors.to(device)) for name, form in forms.items()}
        ledger.let_go()
    with _shadow(model, is_eval=is_eval):
        rows = _rows(run(leaves), examples)
        tolerance = max(lowest_precision(each).tolerance for each, _ in rows)
        weighted = [
            delta * _along(factors, dim, delta)
            for delta, (_, dim) in zip(deltas, rows, strict=True)
        ]
        gradients = torch.autograd.grad(
            [each for each, _ in rows], list(leaves.values()), weighted, allow_unused=True
        )
    wanted = {n: g for n, g in zip(leaves, gradients, strict=True) if g is not None and n in found}
    return _too_far(found, wanted, tolerance)


def _too_far(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float
) -> dict[str, float]:
    lengths = {name: float(torch.linalg.vector_norm(each)) for name, each in wanted.items()}
    floor = FLOOR * sum(length**2 for length in lengths.values()) ** 0.5
    if not isfinite(floor):  # the example will be named when its share is looked at
        return {}
    far = {}
    for name, each in wanted.items():
        gap = float(torch.linalg.vector_norm(found[name].view_as(each).to(each) - each))
        if not gap <= tolerance * max(lengths[name], floor):
            far[name] = gap / max(lengths[name], floor) if lengths[name] or floor else gap
    return far


def _rows(outputs: Any, examples: int) -> list[tuple[Tensor, int]]:
    """The differentiable outputs with one dimension of as many examples, and that dimension."""
    found = []
    for _, each in leaves_of(outputs):
        if isinstance(each, Tensor) and each.requires_grad:
            dims = [dim for dim, size in enumerate(each.shape) if size == examples]
            if len(dims) == 1:
                found.append((each, dims[0]))
    return found


def _along(factors: Tensor, dim: int, like: Tensor) -> Tensor:
    """One factor per example, in the shape that multiplies their dimension."""
    shape = [1] * like.ndim
    shape[dim] = -1
    return factors.to(like.real.dtype).to(like.device).view(shape)


@contextmanager
def _shadow(model: Module, *, is_eval: bool) -> Iterator[None]:
    """A pass that leaves no trace; two of them in a row draw the same random numbers."""
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        stack.enter_context(buffers_kept(model))
        stack.enter_context(torch.enable_grad())
        for module in model.modules():
            if is_eval or isinstance(module, _BatchNorm):
                module.training = False
        yield


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
