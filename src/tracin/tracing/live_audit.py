"""The audit of live steps: whose share is whose, measured against autograd while training runs.

The shares of a step add up to its gradient even if two examples have each other's. So, on traced
steps 1, 2, 4, 8, ..., the model's calls are repeated on copies of their inputs, at the weights and
with the random numbers of the step, with random gradients of its outputs: the sum of c_i x share_i,
one random c_i per example, must equal autograd's gradient where c_i multiplies example i's rows of
the outputs. That holds where no example's outputs depend on another; BatchNorm therefore runs on
its running statistics. Outputs without a dimension of examples, such as a loss computed within the
model, are replaced by the queries' loss of the same training examples.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import isfinite
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from tracin.data import Examples, move
from tracin.data.batches import leaves as leaves_of
from tracin.errors import TracingError, TracingWarning
from tracin.gradients.accumulator import GradientAccumulator
from tracin.gradients.audit import audit_factors
from tracin.gradients.compute import Compute
from tracin.gradients.distances import too_far
from tracin.gradients.forms import PerExampleGradient
from tracin.gradients.grad_hook import new_anchor
from tracin.gradients.layouts import ShapeProbe
from tracin.gradients.watch import FunctionWatch
from tracin.guards import untouched, use_eval
from tracin.plain_text import listed
from tracin.precision import lowest_precision
from tracin.random_state import same_random_state
from tracin.tracing.buffers import buffers_kept
from tracin.tracing.micro_batches import MicroBatch, ShareReader
from tracin.tracing.model_calls import Run, captured_calls, repeated_calls, repeated_losses


@final
class LiveAudit:
    """Audits traced steps 1, 2, 4, 8, ...; warns once where one cannot be audited.

    `compute` is the queries' per-example loss.
    """

    def __init__(self, model: Module, compute: Compute, train: Examples) -> None:
        self._model, self._compute, self._train = model, compute, train
        self._has_warned = False

    @contextmanager
    def capturing(self, batch: MicroBatch, traced_steps: int) -> Iterator[None]:
        """Keep the calls of a forward pass where the step is to be audited."""
        count = traced_steps + 1
        if count & (count - 1):
            yield
            return
        batch.calls = []
        with captured_calls(self._model, batch.calls):
            yield

    def check(self, batch: MicroBatch, reader: ShareReader, step: int) -> None:
        """Measure that each example's share is its own, before the step is taken."""
        if batch.calls is None:
            return
        inputs = self._model, reader.parameters, reader.trial, len(batch)
        try:
            run = repeated_calls(self._model, batch.calls)
            for is_eval in (False, True):  # in train mode, examples may depend on each other
                far = gaps(*inputs, run, seed=step, is_eval=is_eval)
                if not far:
                    break
            if far == {} and not is_eval:
                return
            if far != {}:
                device = next(iter(reader.parameters.values())).device
                with same_random_state():
                    examples = move(self._train.take(batch.positions.tolist()), device)
                run = repeated_losses(self._model, self._compute, examples)
                by_loss = gaps(*inputs, run, seed=step, is_eval=True)
                if far is None and by_loss == {}:
                    return
                if by_loss:
                    raise TracingError(_mixed_up(step, far or by_loss))
            reason = "in train mode its examples depend on each other"
        except TracingError:
            raise
        except Exception as error:  # a user's model: whatever fails here did not fail in training
            reason = f"{type(error).__name__}: {error}"
        self._warn(reason, step)

    def _warn(self, reason: str, step: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"The shares of step {step} could not be audited ({reason}): that they add up to "
                "the gradient is checked, but not that each example has its own. Compare with "
                "tracin.TracIn on a checkpoint.",
                TracingWarning,
                stacklevel=2,
            )


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

    BatchNorm runs in eval mode in any case, the rest of the model if `is_eval`.

    Returns:
        None where no output has a dimension of examples, so nothing was compared.
    """
    leaves = {name: each.detach().requires_grad_() for name, each in parameters.items()}
    device = next(iter(leaves.values())).device
    generator = torch.Generator().manual_seed(seed)
    factors = audit_factors(examples, generator)
    forms: dict[str, PerExampleGradient] = {}
    accumulator = GradientAccumulator(leaves, lambda name, form, row: forms.update({name: form}))
    with _shadow(model, is_eval=is_eval):
        anchor = new_anchor(device)
        watch = FunctionWatch(leaves, trial, examples, anchor, accumulator, is_live=True)
        watch.begin()
        with watch:
            rows = _rows(run(leaves), examples)
        if not rows:
            return None
        deltas = [torch.randn(each.shape, generator=generator).to(each) for each, _ in rows]
        inputs = [*leaves.values(), anchor]
        torch.autograd.grad([each for each, _ in rows], inputs, deltas, allow_unused=True)
        accumulator.close()
        measured = {name: form.weighted_sum(factors.to(device)) for name, form in forms.items()}
        accumulator.let_go()
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
    pairs = zip(leaves, gradients, strict=True)
    expected = {name: each for name, each in pairs if each is not None and name in measured}
    sizes = {name: _length(each) for name, each in expected.items()}
    if not all(map(isfinite, sizes.values())):
        return {}  # the example is named when its share is looked at
    errors = {
        name: _length(measured[name].view_as(each).to(each) - each)
        for name, each in expected.items()
    }
    return too_far(sizes, errors, tolerance)


def _length(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


def _rows(outputs: Any, examples: int) -> list[tuple[Tensor, int]]:
    """The differentiable outputs with one dimension of as many examples, and that dimension."""
    rows = []
    for _, each in leaves_of(outputs):
        if isinstance(each, Tensor) and each.requires_grad:
            dims = [dim for dim, size in enumerate(each.shape) if size == examples]
            if len(dims) == 1:
                rows.append((each, dims[0]))
    return rows


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
        batch_norms = [one for one in model.modules() if isinstance(one, _BatchNorm)]
        for module in [model] if is_eval else batch_norms:
            use_eval(module)
        yield


def _mixed_up(step: int, far: Mapping[str, float]) -> str:
    name, gap = max(far.items(), key=lambda one: one[1])
    return (
        f"In step {step} the examples' shares of the gradient of {listed(far)} are not their own "
        f"(for '{name}' off by {gap:.1e} of the gradient): the model moves examples within a batch "
        "in a way that is not seen, such as sorting outside of torch. Leave these parameters out "
        "(parameters=), or use tracin.TracIn on checkpoints, which goes another way there."
    )
