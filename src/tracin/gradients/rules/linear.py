"""Matrices: the gradient is a sum of outer products over positions."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.gradients.forms import Dense, OuterProduct
from tracin.gradients.rules.broadcast import reduced
from tracin.gradients.rules.contraction import stack
from tracin.gradients.rules.rule import Leaf, NoRule, Parts, Use, positions, rule_for, summed


@rule_for(F.linear)
def linear(use: Use, input: Any, weight: Any, bias: Any = None) -> Parts:
    """Out = input @ weight.T + bias."""
    if isinstance(weight, Leaf) and weight.tensor.ndim != 2:
        raise NoRule("a weight vector")
    inputs = _rows(use, input) if isinstance(weight, Leaf) else None
    return [
        (weight, lambda delta: _outer(use, delta, _of(inputs))),
        (bias, lambda delta: Dense(summed(positions(delta)))),
    ]


@rule_for(torch.addmm, Tensor.addmm)
def addmm(
    use: Use, input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1
) -> Parts:
    """Out = input + mat1 @ mat2, as Hugging Face's Conv1D has it."""
    if (beta, alpha) != (1, 1) or isinstance(mat1, Leaf):
        raise NoRule("scaled, or the parameter on the left")
    inputs = _rows(use, mat1) if isinstance(mat2, Leaf) else None
    shape = input.tensor.shape if isinstance(input, Leaf) else ()
    return [
        (mat2, lambda delta: _outer(use, delta, _of(inputs)).transposed()),
        (input, lambda delta: Dense(reduced(delta, shape))),
    ]


@rule_for(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def matmul(use: Use, input: Any, other: Any) -> Parts:
    """Out = input @ other, with the parameter on either side."""
    if isinstance(other, Leaf) and not isinstance(input, Leaf):
        return _from_the_right(use, input, other)
    if isinstance(input, Leaf) and not isinstance(other, Leaf):
        return _from_the_left(use, input, other)
    raise NoRule("no side is data")


@rule_for(Tensor.__rmatmul__)
def rmatmul(use: Use, input: Any, other: Any) -> Parts:
    """Out = other @ input."""
    return matmul(use, other, input)


def _from_the_right(use: Use, input: Tensor, other: Leaf) -> Parts:
    if other.tensor.ndim > 2:
        return stack(use, input, other)
    inputs = _rows(use, input)
    if other.tensor.ndim == 1:
        return [
            (
                other,
                lambda delta: Dense(
                    (positions(inputs).conj() * delta.reshape(delta.shape[0], -1, 1)).sum(1)
                ),
            )
        ]
    return [(other, lambda delta: _outer(use, delta, inputs).transposed())]


def _from_the_left(use: Use, input: Leaf, other: Tensor) -> Parts:
    if input.tensor.ndim != 2 or other.ndim < 3 or use.layout(other).dim >= other.ndim - 2:
        raise NoRule("the examples are in the matrix itself")
    inputs = use.data(other)
    return [(input, lambda delta: _outer(use, delta.mT, inputs.mT))]


def _outer(use: Use, delta: Tensor, inputs: Tensor) -> OuterProduct:
    left, right = positions(delta), positions(inputs).conj()
    return OuterProduct(use.as_multiplied(left), use.as_multiplied(right))


def _rows(use: Use, input: Any) -> Tensor:
    """The data side, if it holds the examples among its rows."""
    if (
        input is not None
        and not isinstance(input, Leaf)
        and use.layout(input).dim == input.ndim - 1
    ):
        raise NoRule("the examples are what is summed over")
    return use.data(input)


def _of(inputs: Tensor | None) -> Tensor:
    if inputs is None:
        raise NoRule("the matrix is no parameter")
    return inputs
