"""Tensors made of parameters alone: how gradients go back one step, if they can keep their factors.

A cast, a mask, a scale, a product with a constant, spectral and weight norm: the gradient of what
comes out is already a sum of outer products, and so is, but for a few terms, that of what went in.
Where no step is known, autograd pulls written-out gradients back, in blocks (see the accumulator).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from tracin.gradients.forms import (
    Computed,
    ConvFactors,
    Dense,
    OuterProduct,
    PerExampleGradient,
    ScaledEntries,
    ScaledRows,
    Slot,
    SparseRows,
    Stacked,
    SumOf,
    full,
    pairs,
    total,
)
from tracin.gradients.forms.form import BLOCK, by_blocks
from tracin.gradients.rules.rule import Leaf, Move, NoRule, Step, leaves_in
from tracin.torch_internals import TRANSPOSE_GETTERS, weight_norm_function

Steps = Sequence[tuple[Any, Move]]  # a source and its move; entries that are no Leaf are dropped
StepRule = Callable[..., Steps]

_STEPS: dict[Callable[..., Any], StepRule] = {}


def steps_for(
    *funcs: Callable[..., Any],
) -> Callable[[StepRule], StepRule]:
    """Register how gradients go back through these torch functions."""

    def register(rule: StepRule) -> StepRule:
        _STEPS.update(dict.fromkeys(funcs, rule))
        return rule

    return register


def steps_of(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> tuple[Step, ...]:
    """The way back from a call's output to each of its sources; nothing if none is known.

    Args:
        func: A torch function of parameters and constants.
        args: Its arguments, with a Leaf in each parameter's place.
        kwargs: The same by name.
        output: What it gave.
    """
    rule = _STEPS.get(func)
    leaves = [*leaves_in(args), *leaves_in(kwargs)]
    if rule is None or not isinstance(output, Tensor) or output.is_complex():
        return ()
    if any(leaf.tensor.is_complex() or leaf.tensor is output for leaf in leaves):
        return ()  # made in place, or of another kind of numbers
    try:
        found = [
            Step(source, move, source.tensor._version)
            for source, move in rule(output, *args, **kwargs)
            if isinstance(source, Leaf)
        ]
    except (NoRule, TypeError):
        return ()
    sources = [step.source for step in found]
    return tuple(found) if len(set(sources)) == len(leaves) == len(sources) else ()


@steps_for(torch.t, Tensor.t, *TRANSPOSE_GETTERS, torch.transpose, Tensor.transpose)
def transpose(output: Tensor, input: Any, *dims: int, **named: int) -> Steps:
    """The sides of one matrix, or of each matrix of a stack, are exchanged."""
    if input.tensor.ndim == 3 and sorted(dim % 3 for dim in (*dims, *named.values())) == [1, 2]:
        return [(input, lambda form: _each(form, _transposed))]
    if input.tensor.ndim != 2 or sorted(dim % 2 for dim in (*dims, *named.values())) not in (
        [],
        [0, 1],
    ):
        raise NoRule("more than a matrix")
    return [(input, lambda form: _each(form, _transposed))]


@steps_for(Tensor.__getitem__)
def picked(output: Tensor, input: Any, index: Any) -> Steps:
    """One matrix of a stack, by its number."""
    if isinstance(index, Tensor) and index.ndim == 0 and index.dtype == torch.int64:
        index = int(index)
    if input.tensor.ndim != 3 or not isinstance(index, int) or isinstance(index, bool):
        raise NoRule("other than one matrix of a stack")
    matrices = input.tensor.shape[0]

    def move(form: PerExampleGradient) -> PerExampleGradient | None:
        if not _is_outer(form, output.shape):
            return None
        return Slot(form, index % matrices, matrices)

    return [(input, move)]


@steps_for(
    Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.double, Tensor.half,
    Tensor.bfloat16, Tensor.clone, torch.clone, Tensor.contiguous, Tensor.view, Tensor.reshape,
    torch.reshape, Tensor.flatten, torch.flatten, Tensor.unflatten, Tensor.squeeze, torch.squeeze,
    Tensor.unsqueeze, torch.unsqueeze, Tensor.view_as, Tensor.reshape_as,
)  # fmt: skip
def same_numbers(output: Tensor, input: Any, *how: Any, **named: Any) -> Steps:
    """The same numbers in the same order, in another type or shape."""
    if not isinstance(input, Leaf) or leaves_in(how) or leaves_in(named):
        raise NoRule("the parameter is no input")
    if output.numel() != input.tensor.numel() or output.device != input.tensor.device:
        raise NoRule("other numbers")
    # Forms hold numbers in order, whatever the shape.
    return [(input, lambda form: form)]


@steps_for(Tensor.neg, torch.neg, Tensor.__neg__)
def neg(output: Tensor, input: Any) -> Steps:
    """Out = -input."""
    return [(input, lambda form: _scaled(form, input, -1.0))]


@steps_for(
    torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__,
)  # fmt: skip
def mul(output: Tensor, input: Any, other: Any) -> Steps:
    """Out = input x other, entry by entry."""
    return [
        (input, lambda form: _moved(form, input, output, _value(other))),
        (other, lambda form: _moved(form, other, output, _value(input))),
    ]


@steps_for(torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide,
    Tensor.__truediv__,
)  # fmt: skip
def div(output: Tensor, input: Any, other: Any) -> Steps:
    """Out = input / other, entry by entry."""

    def below(form: PerExampleGradient) -> PerExampleGradient | None:
        divisor = _value(other)
        return _moved(form, other, output, -_value(input) / (divisor * divisor))

    return [(input, lambda form: _moved(form, input, output, 1 / _value(other))), (other, below)]


@steps_for(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def add(output: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Steps:
    """Out = input + alpha x other."""
    return [
        (input, lambda form: _moved(form, input, output, 1.0)),
        (other, lambda form: _moved(form, other, output, float(alpha))),
    ]


@steps_for(torch.sub, Tensor.sub, Tensor.__sub__)
def sub(output: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Steps:
    """Out = input - alpha x other."""
    return add(output, input, other, alpha=-alpha)


@steps_for(
    torch.fake_quantize_per_tensor_affine, torch.fake_quantize_per_channel_affine, torch.clamp,
    Tensor.clamp, torch.tanh, Tensor.tanh, torch.sigmoid, Tensor.sigmoid, torch.exp, Tensor.exp,
    torch.nn.functional.softplus, torch.nn.functional.hardtanh, torch.nn.functional.relu,
    torch.abs, Tensor.abs, torch.square, Tensor.square,
)  # fmt: skip
def entrywise(output: Tensor, input: Any, *how: Any, **named: Any) -> Steps:
    """Each entry by itself: what it is multiplied by on the way back is the gradient of ones."""
    if not isinstance(input, Leaf) or leaves_in(how) or leaves_in(named):
        raise NoRule("more than one parameter")

    def move(form: PerExampleGradient) -> PerExampleGradient | None:
        with torch.enable_grad():
            (factors,) = torch.autograd.grad(output.sum(), [input.tensor], retain_graph=True)
        return _scaled(form, input, factors)

    return [(input, move)]


@steps_for(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.mv, Tensor.mv)
def matmul(output: Tensor, input: Any, other: Any) -> Steps:
    """Out = input @ other, a matrix with a matrix or a vector."""
    left, right = _value(input), _value(other)
    if left.ndim != 2 or right.ndim > 2:
        raise NoRule("a stack of matrices")
    if right.ndim == 1:

        def onto(form: PerExampleGradient) -> PerExampleGradient:
            rows = form.dense()
            return OuterProduct(rows.unsqueeze(1), right.to(rows).expand(len(rows), 1, -1))

        return [(input, onto), (other, lambda form: Dense(form.dense() @ left.to(form.dense())))]
    shape = output.shape

    def to_left(form: PerExampleGradient) -> PerExampleGradient | None:
        return _each(form, lambda each: _right_times(each, shape, right.mT))

    def to_right(form: PerExampleGradient) -> PerExampleGradient | None:
        return _each(form, lambda each: _left_times(each, shape, left))

    return [(input, to_left), (other, to_right)]


@steps_for(torch.vdot, torch.dot, Tensor.dot, Tensor.vdot)
def dot(output: Tensor, input: Any, other: Any) -> Steps:
    """Out = the dot product of two vectors."""
    left, right = _value(input), _value(other)

    def times(vector: Tensor) -> Move:
        return lambda form: Dense(form.dense() * vector.to(form.dense()))

    return [(input, times(right)), (other, times(left))]


@steps_for(weight_norm_function)
def weight_norm(output: Tensor, v: Any, g: Any, dim: int = 0) -> Steps:
    """Out = g x v / |v|, with one length for each entry along `dim`, or (-1) one in all."""
    weight, lengths = _value(v), _value(g)
    over = [at for at in range(weight.ndim) if at != dim]
    norms = torch.linalg.vector_norm(weight, dim=over, keepdim=True)
    unit, scale = weight / norms, lengths.view(norms.shape) / norms
    by_rows = dim == 0 and weight.ndim == 2
    met: list[tuple[PerExampleGradient, Tensor]] = []  # of the last form: both sources ask for it

    def along(form: OuterProduct) -> Tensor:
        """Each row's share along its own direction: [examples, out]."""
        if not met or met[0][0] is not form:
            met[:] = [(form, _row_products(form, unit))]
        return met[0][1]

    def shares(rows: Tensor) -> Tensor:
        """The same of gradients that are written out: [examples, *lengths]."""
        return (rows * unit.to(rows)).sum([1 + at for at in over], keepdim=True)

    def across(rows: Tensor) -> Tensor:
        """What is left of them across the directions, as the weight itself gets it."""
        return (rows - shares(rows) * unit.to(rows)) * scale.to(rows)

    def to_v(form: PerExampleGradient) -> PerExampleGradient:
        if not by_rows or not _is_outer(form, weight.shape):
            return _written(form, weight.shape, across)
        scales = scale.to(form.left).flatten()
        kept = ScaledRows(-along(form) * scales, unit.to(form.left))
        return total([OuterProduct(form.left * scales, form.right), kept])

    def to_g(form: PerExampleGradient) -> PerExampleGradient:
        if by_rows and _is_outer(form, weight.shape):
            return Dense(along(form))
        return Dense(
            by_blocks(
                form.examples,
                2 * form.written,
                form.device,
                lambda *run: shares(_rows_of(form, weight.shape, *run)).flatten(1),
            )
        )

    return [(v, to_v), (g, to_g)]


def _written(
    form: PerExampleGradient, shape: Sequence[int], change: Callable[[Tensor], Tensor]
) -> PerExampleGradient:
    """Gradients changed where they are written out: at once, or in blocks when they are needed."""

    def make(start: int, stop: int) -> Tensor:
        return change(_rows_of(form, shape, start, stop)).flatten(1)

    effort = form.written + form.numbers
    if form.examples * effort <= BLOCK:
        return Dense(make(0, form.examples))
    return Computed(make, form.examples, form.numbers, effort, form.device)


def _rows_of(form: PerExampleGradient, shape: Sequence[int], start: int, stop: int) -> Tensor:
    return full(form.part(start, stop).dense()).view(stop - start, *shape)


def _value(value: Any) -> Any:
    """The numbers of an argument, cut off from the graph."""
    if isinstance(value, Leaf):
        value = value.tensor
    return full(value.detach()) if isinstance(value, Tensor) else value


def _moved(
    form: PerExampleGradient, source: Leaf, output: Tensor, factors: Any
) -> PerExampleGradient | None:
    """Through an entrywise product with `factors`, and through the source's broadcasting."""
    shape = source.tensor.shape
    if shape == output.shape:
        return _scaled(form, source, factors)
    matrix = torch.as_tensor(factors, device=output.device).expand(output.shape)
    if source.tensor.numel() == 1:
        rows = matrix.reshape(1, -1)
        return Dense(pairs(form, Dense(rows.to(_like(form)))))
    if not _is_outer(form, output.shape):
        return None
    if shape == (output.shape[0], 1):
        return Dense(_row_products(form, matrix))
    if shape in ((output.shape[1],), (1, output.shape[1])):
        return Dense(_row_products(form.transposed(), matrix.mT))
    return None


def _scaled(form: PerExampleGradient, source: Leaf, factors: Any) -> PerExampleGradient | None:
    """Every entry times its factor: a number, or a tensor that spreads over the source's shape."""
    if isinstance(factors, int | float):
        return form if factors == 1 else _each(form, lambda each: _times(each, float(factors)))
    if factors.numel() == 1:
        return _each(form, lambda each: _times(each, factors.reshape(())))
    shape = source.tensor.shape
    if len(shape) == 2 and factors.ndim <= 2:
        sides = (1,) * (2 - factors.ndim) + tuple(factors.shape)
        if 1 in sides:
            return _each(form, lambda each: _times_side(each, shape, factors.view(sides)))
    entries = factors.expand(shape).flatten()

    def times(each: PerExampleGradient) -> PerExampleGradient:
        return (
            each.scaled(entries) if isinstance(each, SparseRows) else ScaledEntries(each, entries)
        )

    return _each(form, times)


def _each(
    form: PerExampleGradient, move: Callable[[PerExampleGradient], PerExampleGradient | None]
) -> PerExampleGradient | None:
    """A linear map of a sum: of each of its terms."""
    if not isinstance(form, SumOf):
        return move(form)
    moved = [move(each) for each in form.forms]
    known = [each for each in moved if each is not None]
    return total(known) if len(known) == len(moved) else None


def _transposed(form: PerExampleGradient) -> PerExampleGradient | None:
    if isinstance(form, Stacked):
        return Stacked(form.right, form.left)
    return form.transposed() if isinstance(form, OuterProduct) else None


def _times(form: PerExampleGradient, factor: float | Tensor) -> PerExampleGradient | None:
    match form:
        case Dense():
            return Dense(form.values * factor)
        case OuterProduct():
            return OuterProduct(form.left * factor, form.right)
        case SparseRows():
            return SparseRows(form.index, form.values * factor, form.size)
        case ConvFactors():
            return ConvFactors(
                form.inputs, form.deltas * factor, form.weight_shape, form.geometry, form.copies
            )
        case ScaledRows():
            return ScaledRows(form.scales * factor, form.matrix)
        case ScaledEntries():
            return ScaledEntries(form.inner, form.factors * factor)
    return None


def _times_side(
    form: PerExampleGradient, shape: Sequence[int], factors: Tensor
) -> PerExampleGradient | None:
    """Rows, or columns, times a factor each."""
    if isinstance(form, Dense):
        return Dense(form.dense().view(-1, *shape) * factors.to(form.values))
    if not _is_outer(form, shape):
        return None
    factors = factors.to(form.left)
    if factors.shape[1] == 1:
        return OuterProduct(form.left * factors.view(-1), form.right)
    return OuterProduct(form.left, form.right * factors.view(-1))


def _right_times(
    form: PerExampleGradient, shape: Sequence[int], matrix: Tensor
) -> PerExampleGradient | None:
    """The gradient times a matrix from the right."""
    if not _is_outer(form, shape):
        return None
    return OuterProduct(form.left, form.right @ matrix.to(form.right))


def _left_times(
    form: PerExampleGradient, shape: Sequence[int], matrix: Tensor
) -> PerExampleGradient | None:
    """The transpose of a matrix times the gradient."""
    if not _is_outer(form, shape):
        return None
    return OuterProduct(form.left @ matrix.to(form.left), form.right)


def _row_products(form: OuterProduct, matrix: Tensor) -> Tensor:
    """Each row of the gradient with the same row of a matrix: [examples, out]."""
    moved = form.right @ matrix.mT.to(form.right)
    return (moved * form.left).sum(1)


def _is_outer(form: PerExampleGradient, shape: Sequence[int]) -> TypeGuard[OuterProduct]:
    """Whether a form is a sum of outer products with the sides of this matrix."""
    if not isinstance(form, OuterProduct) or len(shape) != 2:
        return False
    return (form.left.shape[2], form.right.shape[2]) == tuple(shape)


def _like(form: PerExampleGradient) -> Tensor:
    """A number of the type and on the device of a form's gradients."""
    return form.part(0, 1).dense().new_zeros(())
