"""Rows as vectors whose dot product is the score, for libraries that know no other score."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

from tracin.checks import positive_int
from tracin.errors import IndexingError
from tracin.sketches.columns import Columns, Dot, Product
from tracin.sketches.hashing import CountSketch
from tracin.sketches.random_numbers import key

WIDEST = 256


@final
@dataclass(frozen=True)
class _Hashed:
    """The two count-sketches whose convolution is one of a product block's outer product."""

    block: Product
    left: CountSketch
    right: CountSketch

    def spectrum(self, rows: Tensor) -> Tensor:
        """Its Fourier transform: [rows, width / 2 + 1]."""
        left, right = _factors(self.block, rows)
        return torch.fft.rfft(self.left(left)) * torch.fft.rfft(self.right(right))


@final
class Flat:
    """Turns rows into vectors: dot products of vectors are the scores of the rows.

    Columns of dot products stay as they are. The score of a product block is the dot product of
    its factors' outer products, so these are written out, smallest first, while all of them take
    no more than `widest` numbers. The larger ones of a group, where they take more than that, are
    count-sketched together into as many, which is right on average: see `Convolved`.

    Args:
        columns: How the rows are laid out.
        widest: Numbers for the products that are written out, and for those that are sketched.
        seed: The seed of the sketches' random numbers.

    Raises:
        IndexingError: `widest` is not a positive whole number.

    Example:
        >>> from tracin.sketches.columns import Side
        >>> columns = Columns((Product(Side(0, 1, 1), Side(1, 3, 2), has_bias=True),), width=3)
        >>> Flat(columns).vectors(torch.tensor([[2.0, 5.0, 7.0]]))
        tensor([[10., 14.,  2.]])
    """

    def __init__(self, columns: Columns, widest: int = WIDEST, seed: int = 0) -> None:
        positive_int(widest, "widest", IndexingError)
        self._width = columns.width
        self._dots = [block for block in columns.blocks if isinstance(block, Dot)]
        products = [block for block in columns.blocks if isinstance(block, Product)]
        ordered = sorted(enumerate(products), key=lambda pair: _numbers(pair[1]))
        taken = list(accumulate(_numbers(block) for _, block in ordered))
        few = sum(total <= widest for total in taken)
        self._written = [block for _, block in ordered[:few]]
        left: dict[int, list[tuple[int, Product]]] = {}
        for number, block in ordered[few:]:
            left.setdefault(block.group, []).append((number, block))
        self._hashed: dict[int, list[_Hashed]] = {}
        for group, members in left.items():
            # A sketch that is no smaller than what it stands for would only err.
            if sum(_numbers(block) for _, block in members) <= widest:
                self._written += [block for _, block in members]
            else:
                self._hashed[group] = [_hashed(block, at, widest, seed) for at, block in members]
        self._widest = widest

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        dots = sum(block.side.width for block in self._dots)
        return dots + sum(map(_numbers, self._written)) + len(self._hashed) * self._widest

    def vectors(self, rows: Tensor, weights: Sequence[float] | None = None) -> Tensor:
        """[rows, width of a row] -> [rows, width of a vector], float32.

        Args:
            rows: Train rows or queries.
            weights: What each group's share is multiplied by, [groups]; None for 1. One side of a
                score is weighted, the other is not.

        Raises:
            IndexingError: Rows of another width.
        """
        if rows.ndim != 2 or rows.shape[1] != self._width:
            raise IndexingError(
                f"Expected rows of {self._width} numbers, [rows, {self._width}]; got "
                f"{list(rows.shape)}."
            )
        pieces = [_weighted(block.side.of(rows), block.group, weights) for block in self._dots]
        for block in self._written:
            left, right = _factors(block, rows)
            outer = (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1)
            pieces.append(_weighted(outer, block.group, weights))
        for group, members in self._hashed.items():
            spectrum = torch.stack([each.spectrum(rows) for each in members]).sum(0)
            pieces.append(_weighted(torch.fft.irfft(spectrum, n=self._widest), group, weights))
        return torch.cat(pieces, 1) if pieces else rows.new_zeros(len(rows), 0)


def _hashed(block: Product, number: int, width: int, seed: int) -> _Hashed:
    def sketch(side: str, numbers: int) -> CountSketch:
        stream = key(seed, "flat", number, side)
        return CountSketch(stream, numbers, width, torch.zeros(0), is_mixed=True)

    left, right = block.left.width, block.right.width + int(block.has_bias)
    return _Hashed(block, sketch("left", left), sketch("right", right))


def _factors(block: Product, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right, a bias as one more input that is always 1."""
    left, right = block.left.of(rows), block.right.of(rows)
    return left, torch.cat([right, right.new_ones(len(right), 1)], 1) if block.has_bias else right


def _numbers(block: Product) -> int:
    return block.left.width * (block.right.width + int(block.has_bias))


def _weighted(values: Tensor, group: int, weights: Sequence[float] | None) -> Tensor:
    return values if weights is None else values * weights[group]
