"""Decides how each parameter is sketched, from the gradients of a few examples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import final

import torch
from torch import Tensor

from tracin.errors import IndexingError
from tracin.gradients.forms import Dense, OuterProduct, PerExampleGradient, SumOf, as_query, pairs
from tracin.precision import in_double
from tracin.sketches.budget import Layer, Need, Shares, divided
from tracin.sketches.columns import Block, Columns, Dot, Product, Side
from tracin.sketches.error_bars import fill
from tracin.sketches.kinds import BiasOf, Convolved, Factored, Hashed, SketchKind, TwoSided, Written
from tracin.sketches.plan import Plan
from tracin.sketches.projection import Projection
from tracin.sketches.sketcher import Sketcher

PILOT = 16
"""Examples that a plan is made from."""

# Beyond this, a matrix of several positions is not written out for each example: its sides are
# projected first, to this many numbers each. For a transformer of width 256 that takes a third of
# the time, and raises the variance of 1024 columns by a twelfth.
_WIDE = 1 << 15
_SIDE = 64

# Draws of random numbers by which a block's spread is measured; not those of any checkpoint.
_DRAWS = range(-8, 0)


@torch.no_grad()
def planned(
    projection: Projection,
    forms: Mapping[str, PerExampleGradient],
    numbers: Mapping[str, int],
    groups: Mapping[str, int] | None = None,
) -> Plan:
    """The plan by which a model's gradients become rows of at most `projection.dim` numbers.

    Where all numbers fit, they are kept. Otherwise layers with one position per example may keep
    their two factors, whole or sketched, in their own columns, and all other parameters are
    sketched together into the columns that are left. The number of such layers, and of columns for
    each, is the one with the least mean variance of the scores among the given examples.

    Args:
        projection: The number of columns, and the seed.
        forms: The gradients of a few examples, by parameter; 16 are enough. A parameter may be
            missing if their loss does not depend on it.
        numbers: The size of each parameter.
        groups: The number of each parameter's group, from 0. Parameters of different groups never
            share a column, so that groups can be weighted. None puts all into one.

    Returns:
        The plan.

    Raises:
        IndexingError: Too few columns for the groups, or a split that names no parameter or
            leaves nothing.

    Example:
        >>> forms = {"weight": OuterProduct(torch.ones(2, 1, 30), torch.ones(2, 1, 20))}
        >>> plan = planned(Projection(dim=50), forms, {"weight": 600})
        >>> plan.columns.blocks[0].left
        Side(start=0, stop=30, numbers=30)
    """
    groups = {name: 0 if groups is None else groups[name] for name in numbers}
    pilot = {name: form.part(0, PILOT) for name, form in forms.items() if name in numbers}
    seen = {name: _seen(form) for name, form in pilot.items()}
    draft = _Draft(pilot, seen, numbers, groups)
    for names, dim in _split(projection, numbers):
        draft.divide(names, dim)
    columns = Columns(tuple(draft.blocks), draft.width)
    kinds = {name: draft.kinds[name] for name in numbers}
    plan = Plan(projection.seed, columns, kinds, dict(numbers), groups)
    return _with_spreads(plan, pilot, seen)


@final
class _Draft:
    """Blocks and kinds, block by block."""

    def __init__(
        self,
        pilot: Mapping[str, PerExampleGradient],
        seen: Mapping[str, Tensor],
        numbers: Mapping[str, int],
        groups: Mapping[str, int],
    ) -> None:
        self.blocks: list[Block] = []
        self.kinds: dict[str, SketchKind] = {}
        self.width = 0
        self._pilot = pilot
        self._seen = seen
        self._numbers = numbers
        self._groups = groups

    def divide(self, names: Sequence[str], dim: int) -> None:
        """Give these parameters `dim` columns, divided in the best of a few ways."""
        if sum(self._numbers[name] for name in names) <= dim:
            for group, members in self._by_group(names).items():
                self._write(members, group)
            return
        best: tuple[Shares, Sequence[_Candidate]] | None = None
        candidates = self._candidates(names)
        for count in range(len(candidates) + 1):
            chosen = candidates[:count]
            rest = self._by_group(_without(names, chosen))
            alone = [self._need(members, dim) for members in rest.values()]
            shares = divided(dim, alone, [each.layer for each in chosen])
            if shares is not None and (best is None or shares.variance < best[0].variance):
                best = shares, chosen
        if best is None:
            raise IndexingError(
                f"{dim} numbers are too few for {len(self._by_group(names))} groups of "
                "parameters with different learning rates, which share no column. Raise dim."
            )
        self._take(names, *best)

    def _take(self, names: Sequence[str], shares: Shares, chosen: Sequence["_Candidate"]) -> None:
        for each, (left, right) in zip(chosen, shares.layers, strict=True):
            layer = each.layer
            sides = self._side(left, layer.left.numbers), self._side(right, layer.right.numbers)
            self.kinds[each.weight] = Factored(len(self.blocks))
            if each.bias is not None:
                self.kinds[each.bias] = BiasOf(each.weight)
            group = self._groups[each.weight]
            self.blocks.append(Product(*sides, has_bias=each.bias is not None, group=group))
        rest = self._by_group(_without(names, chosen))
        for (group, members), columns in zip(rest.items(), shares.alone, strict=True):
            total = sum(self._numbers[name] for name in members)
            if total <= columns:
                self._write(members, group)
                continue
            for name in members:
                self.kinds[name] = self._kind(name, len(self.blocks), columns)
            self.blocks.append(Dot(self._side(columns, total), group, fill(columns, total)))

    def _write(self, members: Sequence[str], group: int) -> None:
        start = self.width
        for name in members:
            self.kinds[name] = Written(self.width)
            self.width += self._numbers[name]
        self.blocks.append(Dot(Side(start, self.width, self.width - start), group))

    def _kind(self, name: str, block: int, columns: int) -> SketchKind:
        form, numbers = self._pilot.get(name), self._numbers[name]
        matrix = _matrix(form)
        if matrix is None:
            return Hashed(block)
        out, inner = matrix.left.shape[2], matrix.right.shape[2]
        if matrix is form and _is_convolved(matrix, columns):
            return Convolved(block, (out, inner))
        if numbers > _WIDE:
            return TwoSided(block, min(out, _SIDE), min(inner, _SIDE), (out, inner))
        return Hashed(block)

    def _side(self, columns: int, numbers: int) -> Side:
        start, self.width = self.width, self.width + columns
        return Side(start, self.width, numbers)

    def _by_group(self, names: Sequence[str]) -> dict[int, list[str]]:
        members: dict[int, list[str]] = {}
        for name in names:
            members.setdefault(self._groups[name], []).append(name)
        return members

    def _need(self, members: Sequence[str], dim: int) -> Need:
        """What a sketch of several parameters together costs: |u|^2 |v|^2 + (u . v)^2."""
        total = sum(self._numbers[name] for name in members)
        products = [self._seen[name] for name in members if name in self._seen]
        cost = _cost(torch.stack(products).sum(0)) if products else 0.0
        for name in members:
            form = self._pilot.get(name)
            if isinstance(form, OuterProduct) and form.positions == 1 and _is_convolved(form, dim):
                layer = _layer(form, has_bias=False)
                cost += layer.left.cost + layer.right.cost
        return Need(total, cost)

    def _candidates(self, names: Sequence[str]) -> list["_Candidate"]:
        """Layers that may keep their factors, those with the largest gain per column first."""
        biases = {
            form.dense().data_ptr(): name
            for name, form in self._pilot.items()
            if name in names and isinstance(form, Dense)
        }
        found: list[tuple[float, _Candidate]] = []
        for name in names:
            form = self._pilot.get(name)
            if not isinstance(form, OuterProduct) or form.positions != 1:
                continue
            bias = biases.pop(form.left.data_ptr(), None)
            if bias is not None and not self._go_together(name, bias):
                bias = None
            layer = _layer(form, has_bias=bias is not None)
            sides = layer.left.numbers + layer.right.numbers
            use = math.sqrt(max(_cost(self._seen[name]), 0.0)) / sides
            found.append((-use, _Candidate(name, bias, layer)))
        return [each for _, each in sorted(found, key=lambda pair: pair[0])]

    def _go_together(self, weight: str, bias: str) -> bool:
        is_one_group = self._groups[weight] == self._groups[bias]
        out = self._pilot[weight].part(0, 1)
        return (
            is_one_group
            and isinstance(out, OuterProduct)
            and self._numbers[bias] == out.left.shape[2]
        )


@final
@dataclass(frozen=True)
class _Candidate:
    """A layer with one position: its weight, its bias if it has one, and what its sides cost."""

    weight: str
    bias: str | None
    layer: Layer


def _without(names: Sequence[str], chosen: Sequence[_Candidate]) -> list[str]:
    taken = {name for each in chosen for name in (each.weight, each.bias)}
    return [name for name in names if name not in taken]


def _layer(form: OuterProduct, *, has_bias: bool) -> Layer:
    """The variance of (A + bias) E, where A and E have independent errors."""
    left, right = in_double(form.left[:, 0]), in_double(form.right[:, 0])
    lefts, rights = left @ left.mT, right @ right.mT
    around_left, around_right = _around(lefts), _around(rights)
    return Layer(
        left=Need(left.shape[1], _mean((rights + int(has_bias)).square() * around_left)),
        right=Need(right.shape[1], _mean(lefts.square() * around_right)),
        both=_mean(around_left * around_right),
    )


def _seen(form: PerExampleGradient) -> Tensor:
    """The products of a parameter's gradients among the first examples: [examples, examples]."""
    return pairs(form, as_query(form)).cpu().double()


def _cost(products: Tensor) -> float:
    return _mean(_around(products))


def _around(products: Tensor) -> Tensor:
    """|u|^2 |v|^2 + (u . v)^2 for every two examples."""
    lengths = products.diagonal()
    return lengths.unsqueeze(1) * lengths + products.square()


def _mean(values: Tensor) -> float:
    """Over pairs of two examples, if there are two."""
    examples = len(values)
    if examples == 1:
        return float(values[0, 0])
    total = values.sum() - values.diagonal().sum()
    return float(total) / (examples * (examples - 1))


def _matrix(form: PerExampleGradient | None) -> OuterProduct | None:
    """The outer products of a form, if it has any."""
    if isinstance(form, OuterProduct):
        return form
    forms = form.forms if isinstance(form, SumOf) else ()
    return next((each for each in forms if isinstance(each, OuterProduct)), None)


def _is_convolved(form: OuterProduct, columns: int) -> bool:
    """Whether two Fourier transforms a position are cheaper than writing the matrix out."""
    sides = form.left.shape[2] + form.right.shape[2]
    transform = columns * math.log2(columns + 1) / 2
    return form.positions * (2 * sides + transform) < form.numbers


def _split(projection: Projection, numbers: Mapping[str, int]) -> list[tuple[list[str], int]]:
    """Parameters, and the number of columns that they share."""
    left = list(numbers)
    parts: list[tuple[list[str], int]] = []
    for pattern, dim in (projection.split or {}).items():
        members = [name for name in left if name == pattern or fnmatchcase(name, pattern)]
        if not members:
            raise IndexingError(
                f"The split's {pattern!r} matches none of the remaining parameters: "
                f"{', '.join(left)}."
            )
        left = [name for name in left if name not in members]
        parts.append((members, dim))
    rest = projection.dim - sum(dim for _, dim in parts)
    if left and rest < 1:
        raise IndexingError(
            f"The split uses all {projection.dim} numbers, and leaves none for "
            f"{', '.join(left)}. Use fewer, raise dim, or include these in the split."
        )
    return [*parts, (left, rest)] if left else parts


def _with_spreads(
    plan: Plan, pilot: Mapping[str, PerExampleGradient], seen: Mapping[str, Tensor]
) -> Plan:
    """Measure how far sketched dot products are off, on the first examples.

    The formula with 1 / columns knows neither entries that are large in both gradients, which
    lessen the variance, nor projections of two sides, which raise it.
    """
    blocks = list(plan.columns.blocks)
    sketched = [i for i, block in enumerate(blocks) if isinstance(block, Dot) and block.spread]
    examples = max((form.examples for form in pilot.values()), default=0)
    if not sketched or examples < 2:
        return plan
    exact, errors = {}, dict.fromkeys(sketched, 0.0)
    for number in sketched:
        members = [seen[name] for name in seen if getattr(plan.kinds[name], "block", -1) == number]
        exact[number] = torch.stack(members).sum(0) if members else None
    device = next(iter(pilot.values())).device
    for draw in _DRAWS:
        sketcher = Sketcher(plan, device, draw=draw, has_norms=False)
        sketcher.begin(examples)
        for name, form in pilot.items():
            sketcher.add(name, form, 0)
        rows = sketcher.rows()
        found = plan.columns.parts(rows, rows).cpu().double()
        for number in sketched:
            if exact[number] is not None:
                errors[number] += _mean((found[number] - exact[number]).square()) / len(_DRAWS)
    for number, error in errors.items():
        block, products = blocks[number], exact[number]
        if isinstance(block, Dot) and products is not None and (around := _cost(products)) > 0:
            blocks[number] = replace(block, spread=error / around)
    return replace(plan, columns=replace(plan.columns, blocks=tuple(blocks)))
