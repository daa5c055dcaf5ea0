"""Elementwise calls: scales, shifts, class tokens; what was spread is summed back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracin.gradients.forms import Dense, full
from tracin.gradients.rules.rule import Leaf, NoRule, Parts, Use, rule_for


@rule_for(torch.add, Tensor.add, Tensor.add_, Tensor.__iadd__, Tensor.__radd__)
def add(use: Use, input: Any, other: Any, *, alpha: float = 1) -> Parts:
    """Out = input + alpha x other."""
    return [
        (input, lambda delta: Dense(reduced(delta, _shape(input)))),
        (other, lambda delta: Dense(alpha * reduced(delta, _shape(other)))),
    ]


@rule_for(torch.sub, Tensor.sub, Tensor.sub_, Tensor.__isub__)
def sub(use: Use, input: Any, other: Any, *, alpha: float = 1) -> Parts:
    """Out = input - alpha x other."""
    return add(use, input, other, alpha=-alpha)


@rule_for(torch.rsub, Tensor.__rsub__)
def rsub(use: Use, input: Any, other: Any, *, alpha: float = 1) -> Parts:
    """Out = other - alpha x input."""
    return [
        (input, lambda delta: Dense(-alpha * reduced(delta, _shape(input)))),
        (other, lambda delta: Dense(reduced(delta, _shape(other)))),
    ]


@rule_for(
    torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.mul_, Tensor.__imul__,
    Tensor.__rmul__,
)  # fmt: skip
def mul(use: Use, input: Any, other: Any) -> Parts:
    """Out = input x other."""
    left, right = _partner(use, input, other), _partner(use, other, input)
    return [
        (input, lambda delta: Dense(reduced(delta * _known(right), _shape(input)))),
        (other, lambda delta: Dense(reduced(delta * _known(left), _shape(other)))),
    ]


@rule_for(torch.div, Tensor.div, Tensor.div_, Tensor.__itruediv__, Tensor.__truediv__)
def div(use: Use, input: Any, other: Any) -> Parts:
    """Out = input / other."""
    left, right = _partner(use, input, other), _partner(use, other, input)

    def below(delta: Tensor) -> Dense:
        divisor = full(other.tensor.detach())
        return Dense(-reduced(delta * _known(left), _shape(other)) / (divisor * divisor))

    return [
        (input, lambda delta: Dense(reduced(delta / _known(right), _shape(input)))),
        (other, below),
    ]


@rule_for(Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to)
def expand(use: Use, input: Any, *sizes: Any) -> Parts:
    """A class token spread over the examples."""
    return [(input, lambda delta: Dense(reduced(delta, _shape(input))))]


@rule_for(Tensor.repeat, torch.tile, Tensor.tile)
def repeat(use: Use, input: Any, *sizes: Any) -> Parts:
    """The same by copies, one after the other: relative positions, whole, for every example."""
    repeats = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes
    if not all(isinstance(count, int) for count in repeats):
        raise NoRule("copies that are not plain numbers")
    sides = _shape(input)
    place = use.output.dim - max(0, len(repeats) - len(sides))
    if not use.output.outer and place >= 0 and sides[place] != 1:
        raise NoRule("the copies of one example are not one after the other")
    return [(input, lambda delta: Dense(_without_copies(delta, sides)))]


def _without_copies(delta: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum over whole copies along every dimension: [examples, *output] -> [examples, *shape]."""
    padded = (1,) * (delta.ndim - 1 - len(shape)) + tuple(shape)
    for dim, size in enumerate(padded, start=1):
        if not size or delta.shape[dim] % size:
            raise NoRule(f"a gradient of {tuple(delta.shape[1:])} for copies of {tuple(shape)}")
        if delta.shape[dim] != size:
            delta = delta.unflatten(dim, (-1, size)).sum(dim)
    return delta.reshape(len(delta), *shape)


def reduced(delta: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum over what was broadcast: [examples, *output] -> [examples, *shape]."""
    extra = delta.ndim - 1 - len(shape)
    if extra > 0:
        delta = delta.sum(tuple(range(1, extra + 1)))
    spread = [dim for dim, size in enumerate(shape, start=1) if size == 1 and delta.shape[dim] != 1]
    if spread:
        delta = delta.sum(spread, keepdim=True)
    if delta.shape[1:] != torch.Size(shape):
        raise NoRule(f"a gradient of {tuple(delta.shape[1:])} for a parameter of {tuple(shape)}")
    return delta


def _shape(value: Any) -> Sequence[int]:
    return value.tensor.shape if isinstance(value, Leaf) else ()


def _partner(use: Use, value: Any, other: Any) -> Any:
    """What a parameter `other` is multiplied with, examples first and as it was at the call."""
    if not isinstance(other, Leaf):
        return None
    if isinstance(value, Leaf):
        raise NoRule("no side is data")
    if not isinstance(value, Tensor):
        return value
    shape = torch.broadcast_shapes(value.shape, other.tensor.shape)
    name = getattr(use.func, "__name__", "")
    is_in_place = name.endswith("_") and (not name.endswith("__") or name.startswith("__i"))
    kept = value.detach().clone() if is_in_place else value.detach()
    if not is_in_place:
        use.watch(kept)
    return use.output.split(kept.expand(shape), use.examples)


def _known(partner: Any) -> Any:
    if partner is None:
        raise NoRule("the other side is no parameter")
    return full(partner).conj() if isinstance(partner, Tensor) else partner
