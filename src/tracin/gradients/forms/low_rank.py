"""Gradients of matrices by their best approximations of low rank, from their factors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from tracin.gradients.forms.cancellation import cancelled, checked_squared_norm
from tracin.gradients.forms.form import PerExampleGradient, blocks, squared_lengths
from tracin.gradients.forms.outer import OuterProduct
from tracin.gradients.forms.rows import SparseRows
from tracin.gradients.forms.summed_products import multiplied
from tracin.gradients.forms.total import SumOf
from tracin.precision import in_double

# Columns beyond the rank and products with the matrix that find its strongest directions: with
# these the error is within a few percent of the best one (Halko, Martinsson and Tropp 2011,
# https://doi.org/10.1137/090771806, sections 1.6 and 4.5).
BEYOND = 8
POWERS = 2


@final
@dataclass(frozen=True, eq=False)
class LowRankGradient:
    """Gradients of one parameter, and what they leave out of those that they stand for.

    Attributes:
        form: The gradients.
        lost: The squared length of what each leaves out: [examples].
        whole: The squared length of each gradient itself: [examples].
    """

    form: PerExampleGradient
    lost: Tensor
    whole: Tensor


@torch.no_grad()
def at_rank(
    form: PerExampleGradient, shape: Sequence[int], rank: int, seed: int
) -> LowRankGradient:
    """Each gradient by a matrix of this rank; as it is where that takes no less memory.

    What is left out is measured itself: as the difference of two lengths it would drown in their
    rounding, which in float32 is 3e-4 of a length.

    Args:
        form: The gradients.
        shape: The parameter's, in real numbers; its dimensions are divided into rows and columns.
        rank: The rank.
        seed: Of the random numbers, which have a generator of their own.
    """
    whole = checked_squared_norm(form)
    as_it_is = LowRankGradient(form, torch.zeros_like(in_double(whole)), in_double(whole))
    rows, columns = _matrix(shape)
    if rank * (rows + columns) >= form.numbers or not bool(whole.isfinite().all()):
        return as_it_is
    match form:
        case OuterProduct():
            if form.positions <= rank:
                return as_it_is
            terms = form.terms()
            if terms is None or not bool(cancelled(whole, terms).any()):
                return _shortened(form, whole, form.shape, form.positions, _ByFactors, rank, seed)
        case SparseRows():
            if rank * (rows + columns) >= form.values[0].numel():
                return as_it_is
        case SumOf():
            # An embedding that is the head as well: its rows stay, the head's factors do not.
            outer = [each for each in form.forms if isinstance(each, OuterProduct)]
            others = [each for each in form.forms if isinstance(each, SparseRows)]
            if len(outer) == 1 and len(outer) + len(others) == len(form.forms):
                found = at_rank(outer[0], shape, rank, seed)
                return LowRankGradient(SumOf((found.form, *others)), found.lost, in_double(whole))
    return _shortened(form, whole, (rows, columns), min(rows, columns), _Written, rank, seed)


class _Matrices(Protocol):
    """What the strongest directions of matrices are found by."""

    def times(self, columns: Tensor) -> Tensor:
        """The matrices times columns."""
        ...

    def transposed_times(self, columns: Tensor) -> Tensor:
        """Their transposes times columns."""
        ...

    def squared_norm_without(self, basis: Tensor) -> Tensor:
        """The squared length of each matrix without what lies in its basis: [examples]."""
        ...


@final
class _ByFactors:
    """Matrices of which nothing is written out."""

    def __init__(self, form: PerExampleGradient, shape: tuple[int, int]) -> None:
        if not isinstance(form, OuterProduct):
            raise TypeError(f"{type(form).__name__} has no factors; a bug in tracin")
        self._left, self._right = form.left, form.right.to(form.left)

    def times(self, columns: Tensor) -> Tensor:
        return multiplied(self._left.mT, multiplied(self._right, columns))

    def transposed_times(self, columns: Tensor) -> Tensor:
        return multiplied(self._right.mT, multiplied(self._left, columns))

    def squared_norm_without(self, basis: Tensor) -> Tensor:
        left = self._left - multiplied(multiplied(self._left, basis), basis.mT)
        return checked_squared_norm(OuterProduct(left, self._right))


@final
class _Written:
    """Matrices that are written out."""

    def __init__(self, form: PerExampleGradient, shape: tuple[int, int]) -> None:
        dense = form.dense()
        kind = torch.promote_types(dense.dtype, torch.float32)
        self._matrices = dense.to(kind).view(-1, *shape)

    def times(self, columns: Tensor) -> Tensor:
        return multiplied(self._matrices, columns)

    def transposed_times(self, columns: Tensor) -> Tensor:
        return multiplied(self._matrices.mT, columns)

    def squared_norm_without(self, basis: Tensor) -> Tensor:
        rest = self._matrices - multiplied(basis, self.transposed_times(basis).mT)
        return squared_lengths(rest.flatten(1))


def _shortened(
    form: PerExampleGradient,
    whole: Tensor,
    shape: tuple[int, int],
    most: int,
    matrices: Callable[[PerExampleGradient, tuple[int, int]], _Matrices],
    rank: int,
    seed: int,
) -> LowRankGradient:
    """The strongest `rank` directions of each matrix, of which the rank is `most` or less."""
    width = min(rank + BEYOND, *shape, most)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(shape[1], width, generator=generator, dtype=torch.float64)
    lefts, rights, lost = [], [], []
    for begin, end in blocks(form.examples, max(form.written, width * sum(shape)), form.device):
        each = matrices(form.part(begin, end), shape)
        like = whole.to(torch.promote_types(whole.dtype, torch.float32))
        first = start.to(like).expand(end - begin, -1, -1)
        spanned = torch.linalg.qr(each.times(first)).Q
        for _ in range(POWERS):
            spanned = torch.linalg.qr(each.transposed_times(spanned)).Q
            spanned = torch.linalg.qr(each.times(spanned)).Q
        right, lengths, turned = torch.linalg.svd(
            each.transposed_times(spanned), full_matrices=False
        )
        basis = spanned @ turned[:, :rank].mT
        lefts.append((basis * lengths[:, None, :rank]).mT.contiguous())
        rights.append(right[..., :rank].mT.contiguous())
        lost.append(in_double(each.squared_norm_without(basis)))
    return LowRankGradient(
        OuterProduct(torch.cat(lefts), torch.cat(rights)), torch.cat(lost), in_double(whole)
    )


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a parameter's gradient: the division that is closest to a square."""
    numbers = math.prod(shape)
    rows = (math.prod(shape[:at]) for at in range(1, len(shape)))
    return min(((each, numbers // each) for each in rows if each), key=sum, default=(1, numbers))
