"""Decides how each parameter is sketched, from the gradients of a few examples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

import torch
from torch import Tensor

from tracin.errors import IndexingError
from tracin.gradients.forms import PerExampleGradient
from tracin.precision import in_double
from tracin.sketches.budget import Layer, Need, Shares, divided
from tracin.sketches.columns import Block, Columns, Dot, Product, Side
from tracin.sketches.error_bars import fill
from tracin.sketches.kinds import BiasOf, Convolved, Factored, Hashed, SketchKind, TwoSided, Written
from tracin.sketches.pilot import Pilot, around, cost, mean_of_pairs
from tracin.sketches.plan import Plan
from tracin.sketches.projection import Projection
from tracin.sketches.spreads import Spreads

PILOT = 16
"""Examples that a plan is made from."""

# Beyond this, a matrix of several positions is not written out for each example: its sides are
# projected first, to this many numbers each. For a transformer of width 256 that takes a third of
# the time, and raises the variance of 1024 columns by a twelfth.
_WIDE = 1 << 15
_SIDE = 64


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
        >>> from tracin.gradients.forms import OuterProduct
        >>> forms = {"weight": OuterProduct(torch.ones(2, 1, 30), torch.ones(2, 1, 20))}
        >>> plan = planned(Projection(dim=50), forms, {"weight": 600})
        >>> plan.columns.blocks[0].left
        Side(start=0, stop=30, numbers=30)
    """
    few = {name: form.part(0, PILOT) for name, form in forms.items() if name in numbers}
    pilot = Pilot()
    for name, form in few.items():
        pilot.take(name, form)
    plan = drafted(projection, pilot, numbers, groups)
    spreads = Spreads(plan, pilot)
    examples = max((form.examples for form in few.values()), default=0)
    if spreads.are_wanted(examples):
        spreads.begin(examples, pilot.device)
        for name, form in few.items():
            spreads.add(name, form)
        spreads.finish()
    return spreads.plan()


def drafted(
    projection: Projection,
    pilot: Pilot,
    numbers: Mapping[str, int],
    groups: Mapping[str, int] | None = None,
) -> Plan:
    """As `planned`, from what a pilot has seen; how far products are off is not measured yet.

    Raises:
        IndexingError: As from `planned`.
    """
    groups = {name: 0 if groups is None else groups[name] for name in numbers}
    draft = _Draft(pilot, numbers, groups)
    for names, dim in _split(projection, numbers):
        draft.divide(names, dim)
    columns = Columns(tuple(draft.blocks), draft.width)
    kinds = {name: draft.kinds[name] for name in numbers}
    return Plan(projection.seed, columns, kinds, dict(numbers), groups)


def follows_from_shapes(pilot: Pilot, groups: Mapping[str, int]) -> bool:
    """Whether a plan's columns are the same for all gradients of these shapes.

    Only layers with one position per example may keep their factors, and only groups share columns
    by what their gradients are. A parameter that no example used may have any shape.

    Args:
        pilot: What has seen the gradients of at least one example.
        groups: The number of each parameter's group.
    """
    is_seen = groups.keys() <= pilot.products().keys()
    return is_seen and not pilot.left_places and len(set(groups.values())) < 2


@final
class _Draft:
    """Blocks and kinds, block by block."""

    def __init__(
        self,
        pilot: Pilot,
        numbers: Mapping[str, int],
        groups: Mapping[str, int],
    ) -> None:
        self.blocks: list[Block] = []
        self.kinds: dict[str, SketchKind] = {}
        self.width = 0
        self._pilot = pilot
        self._seen = pilot.products()
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
        numbers = self._numbers[name]
        matrix = self._pilot.matrices.get(name)
        if matrix is None:
            return Hashed(block)
        if matrix.is_alone and matrix.is_convolved(columns):
            return Convolved(block, matrix.shape)
        if numbers > _WIDE:
            out, inner = matrix.shape
            return TwoSided(block, min(out, _SIDE), min(inner, _SIDE), matrix.shape)
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
        variance = cost(torch.stack(products).sum(0)) if products else 0.0
        for name in members:
            sides = self._pilot.sides(name)
            if sides is not None and self._pilot.matrices[name].is_convolved(dim):
                layer = _layer(*sides, has_bias=False)
                variance += layer.left.cost + layer.right.cost
        return Need(total, variance)

    def _candidates(self, names: Sequence[str]) -> list["_Candidate"]:
        """Layers that may keep their factors, those with the largest gain per column first."""
        found: list[tuple[float, _Candidate]] = []
        biases = {place: name for name, place in self._pilot.places.items() if name in names}
        for name in names:
            sides = self._pilot.sides(name)
            if sides is None:
                continue
            bias = biases.pop(self._pilot.left_places[name], None)
            if bias is not None and not self._go_together(name, bias):
                bias = None
            layer = _layer(*sides, has_bias=bias is not None)
            width = layer.left.numbers + layer.right.numbers
            use = math.sqrt(max(cost(self._seen[name]), 0.0)) / width
            found.append((-use, _Candidate(name, bias, layer)))
        return [each for _, each in sorted(found, key=lambda pair: pair[0])]

    def _go_together(self, weight: str, bias: str) -> bool:
        is_one_group = self._groups[weight] == self._groups[bias]
        return is_one_group and self._numbers[bias] == self._pilot.matrices[weight].shape[0]


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


def _layer(left: Tensor, right: Tensor, *, has_bias: bool) -> Layer:
    """The variance of (A + bias) E, where A and E have independent errors."""
    left, right = in_double(left), in_double(right)
    lefts, rights = left @ left.mT, right @ right.mT
    around_left, around_right = around(lefts), around(rights)
    return Layer(
        left=Need(left.shape[1], mean_of_pairs((rights + int(has_bias)).square() * around_left)),
        right=Need(right.shape[1], mean_of_pairs(lefts.square() * around_right)),
        both=mean_of_pairs(around_left * around_right),
    )


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
