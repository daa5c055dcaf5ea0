"""What each example's loss is multiplied by in the training loss, measured in the user's own pass.

The gradient that reaches the model's outputs is, for each example, its weight times the gradient of
its own loss there. The second needs no pass of the model: the loss is computed once more
from the outputs of the training pass. So dropout and batch statistics do not blur the weights, and
every step is measured: the last batch of a sum may be smaller, and classes may be weighted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, Examples, content_of, move
from tracin.data.batches import mapped
from tracin.gradients.compute import Compute, checked_losses
from tracin.losses import noting_unlabelled
from tracin.random_state import same_random_state

# Examples per micro-batch that are looked at where reading them again takes a dataset's time.
SAMPLED = 8

# How far a gradient may be from a multiple of another, relative to its length.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 1e-2

# Attributes of the model that a loss may read where only the outputs of a pass are known.
_ALLOWED = frozenset({"parameters", "named_parameters", "buffers", "named_buffers"})


class UnknownWeightsError(Exception):
    """The weights cannot be measured; the text says what was found."""


@final
@dataclass(eq=False)
class _Output:
    """A tensor that the model returned, and what the backward pass brought to it."""

    value: Tensor
    version: int
    gradient: Tensor | None = None

    def add(self, gradient: Tensor) -> None:
        gradient = gradient.detach()
        self.gradient = gradient if self.gradient is None else self.gradient + gradient


@final
@dataclass(eq=False)
class ModelOutputs:
    """The outputs of the model's calls in one micro-batch.

    Attributes:
        calls: What each call returned, without its graph.
        tensors: The tensors in there that can have a gradient, by their identity.
    """

    calls: list[Any] = field(default_factory=list)
    tensors: dict[int, _Output] = field(default_factory=dict)

    @contextmanager
    def watching(self, model: Module) -> Iterator[None]:
        """Keep the outputs of the model's calls within."""

        def keep(module: Module, args: Any, output: Any) -> None:
            if torch.is_grad_enabled():
                self.calls.append(mapped(self._watched, output))

        handle = model.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    @property
    def has_gradients(self) -> bool:
        """Whether a backward pass has reached an output."""
        return any(one.gradient is not None for one in self.tensors.values())

    def _watched(self, leaf: Any) -> Any:
        """A tensor's numbers, with a hook that takes down the gradient that arrives."""
        if not isinstance(leaf, Tensor):
            return leaf
        value = leaf.detach()
        if leaf.grad_fn is not None:
            output = _Output(value, value._version)
            self.tensors[id(value)] = output
            leaf.register_hook(output.add)
        return value


def measured_weights(
    model: Module,
    compute: Compute,
    train: Examples,
    positions: Tensor,
    outputs: ModelOutputs,
    *,
    scale: float,
    seed: int,
) -> Tensor:
    """By what each example's loss was multiplied in the loss that was differentiated.

    Args:
        model: The model that is trained.
        compute: The per-example loss.
        train: The training examples.
        positions: [examples], those of the micro-batch.
        outputs: What the model returned for them, after the backward pass.
        scale: By what the loss was multiplied on top of that, for all examples.
        seed: Chooses the examples that are looked at where reading all of them takes long.

    Returns:
        [examples], float64 on the CPU. An example whose own loss has no gradient has weight 1.

    Raises:
        UnknownWeightsError: The training loss is not a weighted sum of the examples' losses, or
            nothing shows whether it is.
    """
    count = len(positions)
    rows = torch.arange(count)
    if not train.is_stored and count > SAMPLED:
        rows = torch.unique((torch.arange(SAMPLED) * count // SAMPLED + seed) % count)
    try:
        with same_random_state():
            batch = move(train.take(positions[rows].tolist()), _device(model))
            parts = _gradients(model, compute, batch, outputs, rows, count)
        weights = _solved(parts, train.ids[positions[rows].numpy()], (scale, scale / count))
    except UnknownWeightsError:
        raise
    except Exception as error:  # a user's data set or loss: whatever fails here
        raise UnknownWeightsError(
            "the loss could not be computed from the outputs of the training pass "
            f"({type(error).__name__}: {error})"
        ) from error
    if len(rows) < count:
        low, high = float(weights.min()), float(weights.max())
        if low != high:
            raise UnknownWeightsError(
                f"the training loss multiplied the examples' losses by {low / scale:.3g} to "
                f"{high / scale:.3g}, and only {len(rows)} of {count} examples were looked at, "
                "since they are read from a dataset"
            )
        weights = weights[:1].expand(count)
    return weights / scale


@final
@dataclass(frozen=True, eq=False)
class _Part:
    """Gradients at one output: [examples, numbers] each, in the outputs' precision."""

    arrived: Tensor
    own: Tensor
    noise: Tensor  # [examples]: how far rounding alone may move `own`
    tolerance: float


def _gradients(
    model: Module,
    compute: Compute,
    batch: Batch,
    outputs: ModelOutputs,
    rows: Tensor,
    count: int,
) -> list[_Part]:
    """What arrived at each output that the loss depends on, and the gradient of the loss there."""
    inputs: list[tuple[_Output, int | None, Tensor]] = []

    def opened(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        dim = next((at for at, size in enumerate(leaf.shape) if size == count), None)
        value = _of_rows(leaf, dim, rows)
        value = value.float() if _is_half(value) else value.clone()
        output = outputs.tensors.get(id(leaf))
        if output is not None:
            if leaf._version != output.version:
                raise UnknownWeightsError("the training loop wrote into the model's outputs")
            inputs.append((output, dim, value.requires_grad_()))
        return value

    recorded = _RecordedModel(model, [mapped(opened, call) for call in outputs.calls])
    device = _device(model).type
    with torch.enable_grad(), torch.autocast(device, enabled=False), noting_unlabelled():
        losses = checked_losses(compute(cast(Module, recorded), content_of(batch)), len(rows))
        if not recorded.is_over:
            raise UnknownWeightsError(
                f"the training pass called the model {len(outputs.calls)} times, and the loss "
                "calls it less often"
            )
        values = [value for _, _, value in inputs]
        gradients: Sequence[Tensor | None] = (
            torch.autograd.grad(losses.sum(), values, allow_unused=True) if values else []
        )
    parts = []
    for (leaf, dim, value), own in zip(inputs, gradients, strict=True):
        if own is None:
            continue
        if dim is None:
            raise UnknownWeightsError("the loss uses an output without a dimension of examples")
        arrived = leaf.gradient if leaf.gradient is not None else torch.zeros_like(leaf.value)
        flat = [_by_example(each, dim) for each in (_of_rows(arrived, dim, rows), own, value)]
        kind = leaf.value.dtype
        noise = 2 * torch.finfo(kind).eps * (1 + flat[2].detach().abs().amax(dim=1))
        parts.append(_Part(flat[0], flat[1], noise, _TOLERANCE.get(kind, _HALF_TOLERANCE)))
    if not parts or not outputs.has_gradients:
        raise UnknownWeightsError("no gradient reached an output of the model that the loss uses")
    return parts


def _solved(parts: Sequence[_Part], ids: Any, likely: Sequence[float]) -> Tensor:
    """One weight for all where that fits, else one per example; `ids` are [examples].

    A weight close to one of the `likely` ones, those of a sum and a mean, is taken to be it.
    """
    inner = torch.stack([_inner(part.arrived, part.own) for part in parts]).sum(0)
    squares = torch.stack([_inner(part.own, part.own) for part in parts]).sum(0)
    total = float(squares.sum())
    one = float(inner.sum()) / total if total else 1.0
    tolerance = max(part.tolerance for part in parts)
    exact = next((weight for weight in likely if abs(one - weight) <= tolerance * weight), one)
    weights = torch.full((len(inner),), exact, dtype=torch.float64)
    if not bool(_misfits(parts, weights, abs(exact)).any()):
        return weights
    each = torch.where(squares > 0, inner / squares.clamp(min=torch.finfo(torch.float64).tiny), 1.0)
    wrong = _misfits(parts, each, float(each.abs().median()))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise UnknownWeightsError(
            "the gradient that reached the model's outputs is not a multiple of that of the loss "
            f"given to the Tracer (first for example {ids.tolist()[row]!r})"
        )
    return each


def _misfits(parts: Sequence[_Part], weights: Tensor, size: float) -> Tensor:
    """The examples whose gradients are not as the weights say: [examples]."""
    wrong = torch.zeros(len(weights), dtype=torch.bool)
    for part in parts:
        scale = weights.to(part.own.dtype).to(part.own.device).unsqueeze(1)
        arrived = part.arrived.to(part.own.dtype)
        gap = (arrived - scale * part.own).norm(dim=1)
        allowed = part.tolerance * arrived.norm(dim=1) + size * part.noise
        wrong |= ~(gap <= allowed).cpu()  # NaN does not fit, either
    return wrong


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """Products by example, float64 on the CPU: [examples]."""
    return (one.to(other.dtype) * other).sum(1).cpu().double()


def _by_example(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0).flatten(1) if tensor.ndim > 1 else tensor.unsqueeze(1)


def _of_rows(tensor: Tensor, dim: int | None, rows: Tensor) -> Tensor:
    if dim is None or len(rows) == tensor.shape[dim]:
        return tensor
    return tensor.index_select(dim, rows.to(tensor.device))


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)


def _device(model: Module) -> torch.device:
    return next(model.parameters()).device


@final
class _RecordedModel:
    """Stands for a model whose calls are over: it returns what they returned."""

    def __init__(self, model: Module, outputs: Sequence[Any]) -> None:
        self._model, self._outputs, self._calls = model, outputs, 0

    @property
    def is_over(self) -> bool:
        """Whether all calls were repeated."""
        return self._calls == len(self._outputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the next call returned."""
        if self.is_over:
            raise UnknownWeightsError(
                "the loss calls the model more often than the training pass, which called it "
                f"{self._calls} times"
            )
        self._calls += 1
        return self._outputs[self._calls - 1]

    __call__ = forward

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._model, name)
        if callable(attribute) and name not in _ALLOWED:
            # What it would compute is not part of the pass that was recorded.
            raise AttributeError(f"the loss uses model.{name}, which no recorded output holds")
        return attribute
