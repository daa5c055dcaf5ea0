"""Products over named dimensions: einsum, stacks of matrices, bilinear maps."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.gradients.forms import Dense, OuterProduct, PerExampleGradient, Stacked, full
from tracin.gradients.rules.rule import Leaf, NoRule, Parts, Use, positions, rule_for, summed


@rule_for(torch.einsum)
def einsum(use: Use, equation: Any, *operands: Any) -> Parts:
    """One parameter times one data tensor, each dimension named once."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if len(operands) != 2 or not isinstance(equation, str):
        raise NoRule("other than two operands")
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    names = inputs.split(",")
    if not arrow or "." in equation or len(names) != 2:
        raise NoRule("dimensions without names")
    first, second = operands
    if isinstance(first, Leaf) and isinstance(second, Tensor):
        return contracted(use, first, names[0], second, names[1], output)
    if isinstance(second, Leaf) and isinstance(first, Tensor):
        return contracted(use, second, names[1], first, names[0], output)
    raise NoRule("no side is data")


@rule_for(torch.bmm, Tensor.bmm)
def bmm(use: Use, input: Any, mat2: Any) -> Parts:
    """A stack of data times a stack of matrices."""
    return stack(use, input, mat2)


def stack(use: Use, input: Any, other: Any) -> Parts:
    """Out = input @ other, where other is a stack of matrices, such as one for each expert."""
    if not isinstance(other, Leaf) or not isinstance(input, Tensor) or other.tensor.ndim != 3:
        raise NoRule("no stack on the right")
    names = {3: "zti", 4: "bzti"}.get(input.ndim)
    if names is None:
        raise NoRule("more than a stack")
    return contracted(use, other, "zio", input, names, names[:-1] + "o")


@rule_for(F.bilinear)
def bilinear(use: Use, input1: Any, input2: Any, weight: Any, bias: Any = None) -> Parts:
    """Out = input1 @ weight @ input2 + bias: three factors, of which two are multiplied out."""
    lefts, rights = (
        (use.data(input1), use.data(input2)) if isinstance(weight, Leaf) else (None, None)
    )

    def form(delta: Tensor) -> PerExampleGradient:
        if lefts is None or rights is None:
            raise NoRule("the weight is no parameter")
        out, one, other = positions(delta), positions(lefts).conj(), positions(rights).conj()
        sizes = [each.shape[2] for each in (out, one, other)]
        if sizes[0] + sizes[1] * sizes[2] <= sizes[0] * sizes[1] + sizes[2]:
            return OuterProduct(out, _products(one, other))
        return OuterProduct(_products(out, one), other)

    return [(weight, form), (bias, lambda delta: Dense(summed(positions(delta))))]


def contracted(use: Use, leaf: Leaf, own: str, data: Tensor, theirs: str, output: str) -> Parts:
    """Out[output] = the sum over what it lacks of leaf[own] x data[theirs].

    Raises:
        NoRule: A dimension is named twice, summed on one side alone or spread over, or the
            parameter's dimensions are not a stack of matrices in their order.
    """
    layout = use.layout(data)
    if layout.copies != 1 or use.output.copies != 1:
        raise NoRule("positions merged with the examples")
    if any(len(set(names)) != len(names) for names in (own, theirs, output)):
        raise NoRule("a diagonal")
    sizes = dict(zip(own, leaf.tensor.shape, strict=True))
    if any(sizes.get(name, size) != size for name, size in zip(theirs, data.shape, strict=True)):
        raise NoRule("a dimension that is spread over")
    example = theirs[layout.dim]
    if example in own or output[use.output.dim] != example:
        raise NoRule("the examples are elsewhere in the output")
    if set(theirs) - set(own) - set(output) or set(own) - set(theirs) - set(output):
        raise NoRule("a dimension that is summed on one side alone")
    shared = [name for name in own if name in theirs and name in output]
    inner = [name for name in own if name in theirs and name not in output]
    free = [name for name in own if name not in theirs]
    places = [name for name in output if name not in own and name != example]
    is_free_first = own == "".join(shared + free + inner)
    if not is_free_first and own != "".join(shared + inner + free):
        raise NoRule("the parameter's dimensions are mixed")
    kept = use.data(data).squeeze(layout.dim + 1)

    def form(delta: Tensor) -> PerExampleGradient:
        given = full(delta.squeeze(use.output.dim + 1))
        outs = _arranged(given, _first(output, example), example, shared, places, free)
        ins = _arranged(full(kept), _first(theirs, example), example, shared, places, inner).conj()
        left, right = (outs, ins) if is_free_first else (ins, outs)
        return Stacked(left, right) if shared else OuterProduct(left[:, 0], right[:, 0])

    return [(leaf, form)]


def _first(names: str, example: str) -> str:
    """The names in the order of a tensor whose examples were put first."""
    return example + names.replace(example, "")


def _arranged(
    tensor: Tensor,
    names: str,
    example: str,
    shared: list[str],
    places: list[str],
    rest: list[str],
) -> Tensor:
    """[examples, shared, positions, the rest], each as one dimension."""
    tensor = tensor.permute([names.index(name) for name in [example, *shared, *places, *rest]])
    sides = tensor.shape[1:]
    stacks, at = len(shared), len(shared) + len(places)
    return tensor.reshape(
        len(tensor), sides[:stacks].numel(), sides[stacks:at].numel(), sides[at:].numel()
    )


def _products(one: Tensor, other: Tensor) -> Tensor:
    """Every number of one with every number of the other, at each position."""
    return (one.unsqueeze(3) * other.unsqueeze(2)).flatten(2)
