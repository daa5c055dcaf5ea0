"""Count sketches: each number gets a random sign and a random column, and columns are sums.

M. Charikar, K. Chen and M. Farach-Colton, "Finding frequent items in data streams", 2002,
https://doi.org/10.1007/3-540-45465-9_59.
"""

from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms import SparseRows
from tracin.gradients.forms.form import blocks
from tracin.sketches.random_numbers import integers, order, signs

# Pieces narrower than this are brought to their columns by one gather and summed by one call per
# block of rows. From here on a call per piece is as fast: rows are read in order, and the rows
# that are folded to so few columns have few pieces.
_GATHERED_BELOW = 128


@final
class FoldedCountSketch:
    """Sketches long rows: cuts each into pieces of `width`, signs and rotates these, and adds them.

    A count sketch draws a column per number; this one draws a rotation per piece, so that memory is
    read and written in order. Two numbers of different pieces share a column with a probability of
    1 / width, two of the same piece never, so the variance is at most that of a count sketch.

    Args:
        stream: The key of the random numbers.
        numbers: Numbers per row.
        width: Columns. Rows are added up in twice as many; `folded` brings them together.
        like: A tensor of the device and dtype to compute in.

    Example:
        >>> rows, sums = torch.ones(1, 6), torch.zeros(1, 4)
        >>> FoldedCountSketch(0, numbers=6, width=2, like=rows).add(rows, sums)
        >>> folded(sums).shape
        torch.Size([1, 2])
    """

    def __init__(self, stream: int, numbers: int, width: int, like: Tensor) -> None:
        self.width = width
        rotations = integers(stream, -(-numbers // width), width)
        self._rotations: list[int] = rotations.tolist()
        self._rotation_of = torch.from_numpy(rotations).to(like.device)
        self._signs = torch.from_numpy(signs(stream + 1, numbers)).to(like.device)
        self._dtype = like.dtype
        self._factors: Tensor | None = None
        self._gather: tuple[Tensor, Tensor] | None = None

    def add(self, rows: Tensor, into: Tensor) -> None:
        """Add rows [examples, numbers] into [examples, 2 x width]."""
        if self._factors is None:
            self._factors = self._signs.to(self._dtype)
        rows = rows.to(self._dtype)
        first = rows.shape[1] // self.width if self.width < _GATHERED_BELOW else 0
        if first:
            self._add_whole_pieces(rows, first, into)
        for piece in range(first, len(self._rotations)):
            rotation = self._rotations[piece]
            at = slice(piece * self.width, (piece + 1) * self.width)
            part = rows[:, at]
            into[:, rotation : rotation + part.shape[1]].addcmul_(part, self._factors[at])

    def _add_whole_pieces(self, rows: Tensor, pieces: int, into: Tensor) -> None:
        """As `add` does the first pieces, in a number of calls that does not grow with them."""
        if self._gather is None:
            across = torch.arange(self.width, device=self._signs.device)
            starts = torch.arange(pieces, device=self._signs.device).unsqueeze(1) * self.width
            within = (across - self._rotation_of[:pieces].unsqueeze(1)) % self.width
            sources = (starts + within).flatten()  # what each column of each piece is made of
            self._gather = sources, self._signs[sources].to(self._dtype)
        sources, factors = self._gather
        for start, stop in blocks(len(rows), len(sources), rows.device):
            gathered = rows[start:stop].index_select(1, sources).mul_(factors)
            into[start:stop, : self.width] += gathered.unflatten(1, (-1, self.width)).sum(1)

    def add_rows(self, form: SparseRows, into: Tensor) -> None:
        """Add a table's gradients, of which few rows are not zero, without writing them out."""
        width = form.values.shape[2]
        across = torch.arange(width, device=form.device)
        for start, stop in blocks(form.examples, form.index.shape[1] * width, form.device):
            part = form.part(start, stop)
            places = part.index.unsqueeze(2) * width + across  # [examples, positions, width]
            columns = self._rotation_of[places // self.width].add_(places % self.width)
            values = part.values.to(self._dtype) * self._signs[places]
            into[start:stop].scatter_add_(1, columns.flatten(1), values.flatten(1))


def folded(sums: Tensor) -> Tensor:
    """Add the columns beyond `width` to the first ones: [examples, 2 x width] -> [.., width]."""
    first, second = sums.chunk(2, 1)
    return first + second


@final
class CountSketch:
    """Sketches short rows, such as factors of gradients, with one column drawn per number.

    Columns are filled evenly: two numbers share one with a probability of at most 1 / width.

    Args:
        stream: The key of the random numbers.
        numbers: Numbers per row.
        width: Columns. With at least as many as numbers, rows stay as they are, unless `is_mixed`.
        like: A tensor of the device and dtype to compute in.
        is_mixed: Whether to sign and move numbers even where each has its own column.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0, 3.0]])
        >>> CountSketch(0, numbers=3, width=3, like=rows)(rows)
        tensor([[1., 2., 3.]])
    """

    def __init__(
        self, stream: int, numbers: int, width: int, like: Tensor, *, is_mixed: bool = False
    ) -> None:
        self.width = width
        self._dtype = like.dtype
        self._order: Tensor | None = None
        if numbers > width or is_mixed:
            self._order = torch.from_numpy(order(stream, max(numbers, width))).to(like.device)
            self._signs = torch.from_numpy(signs(stream + 1, numbers)).to(like)

    def __call__(self, rows: Tensor) -> Tensor:
        """[rows, numbers] -> [rows, width]."""
        if self._order is None:
            return rows.to(self._dtype)
        out = rows.new_zeros(len(rows), self.width, dtype=self._dtype)
        self.put(rows, out)
        return out

    def put(self, rows: Tensor, into: Tensor) -> None:
        """Put [rows, numbers] into [rows, width], which holds zeros."""
        if self._order is None:
            into.copy_(rows)
            return
        rows, numbers = rows.to(self._dtype), rows.shape[1]
        if numbers <= self.width:
            into.index_copy_(1, self._order[:numbers], rows * self._signs)
            return
        shuffled = rows.index_select(1, self._order).mul_(self._signs)
        whole = numbers - numbers % self.width
        into += shuffled[:, :whole].unflatten(1, (-1, self.width)).sum(1)
        into[:, : numbers - whole] += shuffled[:, whole:]
