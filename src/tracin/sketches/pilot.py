"""What a plan needs to know of a few examples' gradients, taken parameter by parameter."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms import Dense, OuterProduct, PerExampleGradient, SumOf, as_query, pairs

_BIAS = 1 << 20  # numbers: no layer's bias is larger


@final
@dataclass(frozen=True)
class Matrix:
    """The outer products of a parameter's gradient.

    Attributes:
        shape: Out and in.
        positions: How many products one example has.
        is_alone: Whether the gradient is nothing else.
    """

    shape: tuple[int, int]
    positions: int
    is_alone: bool

    def is_convolved(self, columns: int) -> bool:
        """Whether two Fourier transforms per position are cheaper than writing the matrix out."""
        sides = sum(self.shape)
        transform = columns * math.log2(columns + 1) / 2
        return self.positions * (2 * sides + transform) < math.prod(self.shape)


@final
class Pilot:
    """Products among gradients, and what is small: the gradients themselves are let go.

    Those of a language model's layers, factors of all positions of 16 examples at once, would be
    many times the model.

    Attributes:
        matrices: The outer products, of each parameter that has any.
        places: Where the gradients of each bias lie in memory, as far as it may be a layer's.
        left_places: Where the left factors of each layer with one position lie.
        device: Where gradients were.

    Example:
        >>> pilot = Pilot()
        >>> pilot.take("scale", Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]])))
        >>> pilot.products()["scale"][0]
        tensor([[ 5., 11.],
                [11., 25.]], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.matrices: dict[str, Matrix] = {}
        self.places: dict[str, int] = {}
        self.left_places: dict[str, int] = {}
        self.device = torch.device("cpu")
        self._products: dict[str, list[Tensor]] = {}
        self._sides: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._rows: dict[str, Tensor] = {}  # held, so that no other tensor comes to lie there

    @torch.no_grad()
    def take(self, name: str, form: PerExampleGradient) -> None:
        """Take a parameter's gradients of one batch; all batches are equally large."""
        self.device = form.device
        is_first = name not in self._products
        query = as_query(form)
        # What is written out for one side need not be written out for the other.
        is_long = isinstance(form, OuterProduct) and form.positions > 1
        is_written = is_long and isinstance(query, Dense)
        products = pairs(query if is_written else form, query).cpu().double()
        self._products.setdefault(name, []).append(products)
        matrix = _matrix(form)
        if is_first and matrix is not None:
            shape = matrix.left.shape[2], matrix.right.shape[2]
            self.matrices[name] = Matrix(shape, matrix.positions, matrix is form)
        if is_first and isinstance(form, Dense) and form.numbers <= _BIAS:
            self._rows[name] = form.dense()
            self.places[name] = self._rows[name].data_ptr()
        if isinstance(form, OuterProduct) and form.positions == 1:
            self.left_places.setdefault(name, form.left.data_ptr())
            self._sides.setdefault(name, []).append((form.left[:, 0], form.right[:, 0]))

    def products(self) -> Mapping[str, Tensor]:
        """Those of gradients of the same batch, by parameter: [batches, examples, examples]."""
        return {name: torch.stack(each) for name, each in self._products.items()}

    def sides(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The factors of a layer with one position per example, [examples, ..]; None of others."""
        sides = self._sides.get(name)
        if sides is None:
            return None
        lefts, rights = zip(*sides, strict=True)
        return torch.cat(lefts), torch.cat(rights)


def around(products: Tensor) -> Tensor:
    """|u|^2 |v|^2 + (u . v)^2 for every two examples: [.., examples, examples]."""
    lengths = products.diagonal(dim1=-2, dim2=-1)
    return lengths.unsqueeze(-1) * lengths.unsqueeze(-2) + products.square()


def mean_of_pairs(values: Tensor) -> float:
    """Over pairs of two examples, if there are two: [.., examples, examples]."""
    examples = values.shape[-1]
    if examples == 1:
        return float(values.mean())
    apart = values.sum() - values.diagonal(dim1=-2, dim2=-1).sum()
    return float(apart) / (values[..., 0].numel() * (examples - 1))


def cost(products: Tensor) -> float:
    """What a sketch of one column would cost: the mean variance of its products."""
    return mean_of_pairs(around(products))


def _matrix(form: PerExampleGradient) -> OuterProduct | None:
    """The outer products of a form, if it has any."""
    if isinstance(form, OuterProduct):
        return form
    forms = form.forms if isinstance(form, SumOf) else ()
    return next((each for each in forms if isinstance(each, OuterProduct)), None)
