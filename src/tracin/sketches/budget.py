"""Divides columns so that scores vary least."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from tracin.sketches.error_bars import fill


@final
@dataclass(frozen=True)
class Need:
    """Something that needs columns.

    Attributes:
        numbers: The numbers that it sketches: more columns are of no use.
        cost: Its variance is cost / columns, falling to 0 at `numbers`.
    """

    numbers: int
    cost: float


@final
@dataclass(frozen=True)
class Layer:
    """The two sides of a product block: left, right, and what both add to the variance together."""

    left: Need
    right: Need
    both: float


@final
@dataclass(frozen=True)
class Shares:
    """Columns for each need, and the variance that is left."""

    alone: tuple[int, ...]
    layers: tuple[tuple[int, int], ...]  # left, right
    variance: float


def divided(columns: int, alone: Sequence[Need], layers: Sequence[Layer]) -> Shares | None:
    """The shares at which the sum of variances is least; None if there are too few columns.

    Where variances are cost / share, shares go as the square roots of costs; none is larger than
    its need. The two sides of a layer also cost together, so theirs are settled in a few rounds.
    """
    needs = [*alone, *(side for layer in layers for side in (layer.left, layer.right))]
    if len(needs) > columns:
        return None
    shares = _water_filled(columns, needs)
    for _ in range(4):
        lefts, rights = _sides(shares, len(alone))
        needs = list(alone)
        for layer, left, right in zip(layers, lefts, rights, strict=True):
            of_left = layer.left.cost + layer.both * fill(right, layer.right.numbers)
            of_right = layer.right.cost + layer.both * fill(left, layer.left.numbers)
            needs.append(Need(layer.left.numbers, of_left))
            needs.append(Need(layer.right.numbers, of_right))
        shares = _water_filled(columns, needs)
    lefts, rights = _sides(shares, len(alone))
    variance = sum(
        need.cost * fill(share, need.numbers)
        for need, share in zip(alone, shares[: len(alone)], strict=True)
    )
    for layer, left, right in zip(layers, lefts, rights, strict=True):
        on_left, on_right = fill(left, layer.left.numbers), fill(right, layer.right.numbers)
        variance += layer.left.cost * on_left + layer.right.cost * on_right
        variance += layer.both * on_left * on_right
    return Shares(tuple(shares[: len(alone)]), tuple(zip(lefts, rights, strict=True)), variance)


def _sides(shares: Sequence[int], alone: int) -> tuple[list[int], list[int]]:
    return list(shares[alone::2]), list(shares[alone + 1 :: 2])


def _water_filled(columns: int, needs: Sequence[Need]) -> list[int]:
    """Water-filling: whole shares, at least 1 and at most the need."""
    if sum(need.numbers for need in needs) <= columns:
        return [need.numbers for need in needs]
    largest = max(need.cost for need in needs)
    floor = largest * 1e-12 or 1.0  # costs of nothing get what is left over
    roots = [math.sqrt(max(need.cost, floor)) for need in needs]
    low, high = 0.0, columns / min(roots)
    while high - low > 1e-12 * high:  # beyond that, whole shares no longer change
        level = (low + high) / 2
        if sum(_filled(needs, roots, level)) > columns:
            high = level
        else:
            low = level
    shares = _filled(needs, roots, low)
    while (left := columns - sum(shares)) != 0:
        step = 1 if left > 0 else -1
        order = _by_use(needs, roots, shares, step)
        for at in order[: abs(left)]:
            shares[at] += step
    return shares


def _filled(needs: Sequence[Need], roots: Sequence[float], level: float) -> list[int]:
    return [
        min(need.numbers, max(1, math.floor(level * root)))
        for need, root in zip(needs, roots, strict=True)
    ]


def _by_use(
    needs: Sequence[Need], roots: Sequence[float], shares: Sequence[int], step: int
) -> list[int]:
    """Those who may take or give one column, the one to whom it matters most, or least, first."""
    able: Callable[[int], bool] = (
        (lambda at: shares[at] < needs[at].numbers) if step > 0 else (lambda at: shares[at] > 1)
    )
    return sorted(
        (at for at in range(len(needs)) if able(at)),
        key=lambda at: (-step * roots[at] / shares[at], at),
    )
