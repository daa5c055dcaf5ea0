"""Count-sketches: each number gets a random sign and a random column, and columns are sums."""

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
    """Sketches long rows: cut into pieces of `width`, each signed, turned round, and added up.

    A turn per piece in place of a column per number: memory is read and written in order. Two
    numbers of unlike pieces share a column with a probability of 1 / width, two of the same piece
    never, so that the variance is at most that of columns drawn one by one (method M18).

    Args:
        stream: The key of the random numbers.
        numbers: Of a row.
        width: Columns; the rows are added up in twice as many, see `folded`.
        like: A tensor of the device and type to work in.
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
        """Add a table's rows, of which few are there, without writing the table out."""
        width = form.values.shape[2]
        across = torch.arange(width, device=form.device)
        for start, stop in blocks(form.examples, form.index.shape[1] * width, form.device):
            part = form.part(start, stop)
            places = part.index.unsqueeze(2) * width + across  # [examples, positions, width]
            columns = self._rotation_of[places // self.width].add_(places % self.width)
            values = part.values.to(self._dtype) * self._signs[places]
            into[start:stop].scatter_add_(1, columns.flatten(1), values.flatten(1))


def folded(sums: Tensor) -> Tensor:
    """What is beyond the last column begins again at the first: [examples, 2 x width] -> width."""
    first, second = sums.chunk(2, 1)
    return first + second


@final
class CountSketch:
    """Sketches short rows, factors of gradients, with a column drawn for each number.

    Columns are filled evenly: two numbers share one with a probability of at most 1 / width.

    Args:
        stream: The key of the random numbers.
        numbers: Of a row.
        width: Columns; as many as numbers leave rows as they are, unless `is_mixed`.
        like: A tensor of the device and type to work in.
        is_mixed: Whether numbers are signed and moved even where each has a column of its own.
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
