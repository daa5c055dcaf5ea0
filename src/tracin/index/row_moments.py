"""The second moments of an index's rows, which curvature on the rows is made from."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from tracin.errors import PreconditionerError
from tracin.index.store import Store
from tracin.preconditioners.second_moments import WIDEST, Moments
from tracin.progress import bar
from tracin.sketches.columns import Columns, Product, Side

# Rows in memory at once, in float64.
BLOCK_ROWS = 1024


@final
class ColumnMoments:
    """Adds up the second moments of each side's columns, and their sums, in float64.

    Args:
        columns: How the rows are laid out.

    Raises:
        PreconditionerError: Sketched columns that are too many for a matrix.

    Example:
        >>> from tracin.sketches import Columns, Dot, Side
        >>> columns = Columns((Dot(Side(0, 2, 2)),), width=2)
        >>> moments = ColumnMoments(columns)
        >>> moments.add(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        >>> moments.rows, moments.of[Side(0, 2, 2)].products[0].tolist()
        (2, [[2.0, 2.0], [2.0, 4.0]])
    """

    def __init__(self, columns: Columns) -> None:
        refuse_too_wide(columns)
        cpu = torch.device("cpu")
        self.of = {side: Moments(1, side.width, cpu) for side in columns.sides}
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        """Add rows: [rows, width]."""
        for side, moments in self.of.items():
            moments.add(side.of(rows).double().unsqueeze(0))
        self.rows += len(rows)

    def to_numbers(self) -> Tensor:
        """All of it as one vector of float64, each matrix's upper triangle alone."""
        pieces: list[Tensor] = []
        for moments in self.of.values():
            products = moments.products[0]
            is_matrix = not moments.is_diagonal
            pieces += [products[_triangle(len(products))] if is_matrix else products]
            pieces += [moments.sums[0]]
        return torch.cat(pieces)

    @classmethod
    def of_numbers(cls, columns: Columns, numbers: Tensor, rows: int) -> "ColumnMoments":
        """What gave these numbers, of so many rows."""
        found, at = cls(columns), 0
        found.rows = rows
        for moments in found.of.values():
            width = moments.sums.shape[1]
            size = width if moments.is_diagonal else width * (width + 1) // 2
            if moments.is_diagonal:
                moments.products[0] = numbers[at : at + size]
            else:
                upper = torch.zeros(width, width, dtype=torch.float64)
                upper[_triangle(width)] = numbers[at : at + size]
                moments.products[0] = upper + upper.triu(1).mT
            moments.sums[0] = numbers[at + size : at + size + width]
            moments.count += rows
            at += size + width
        return found


def count_of_numbers(columns: Columns) -> int:
    """How many numbers the moments of such rows are."""
    widths = [side.width for side in columns.sides]
    return sum(w + (w if w > WIDEST else w * (w + 1) // 2) for w in widths)


def moments_of_rows(
    store: Store, columns: Columns, key: str, positions: Tensor, progress: bool | None
) -> ColumnMoments:
    """The moments of some rows at a checkpoint, read block by block.

    Args:
        store: The rows.
        columns: How they are laid out.
        key: The checkpoint.
        positions: Of the rows, rising: [positions].
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        IndexingError: The index is incomplete, or a file is damaged.
    """
    found = ColumnMoments(columns)
    ranges = store.manifest.ranges()
    ends = torch.tensor([span.stop for span in ranges])
    cuts = torch.searchsorted(positions, ends).tolist()
    with bar(len(positions), "curvature", progress, "row") as shown:
        for span, start, stop in zip(ranges, [0, *cuts], cuts, strict=False):
            if start == stop:
                continue
            shard = store.read_range(key, span)
            shard.check()  # these sums stay, so every byte is compared
            for places in (positions[start:stop] - span.start).split(BLOCK_ROWS):
                found.add(shard.chosen(places))
                shown.update(len(places))
    return found


def moments_of_examples(
    columns: Columns, count: int, rows: Callable[[range], Tensor]
) -> ColumnMoments:
    """The moments of so many examples, whose rows are made a few at a time."""
    found = ColumnMoments(columns)
    for start in range(0, count, BLOCK_ROWS):
        found.add(rows(range(start, min(start + BLOCK_ROWS, count))))
    return found


def refuse_too_wide(columns: Columns) -> None:
    """Refuse sketched columns that are too many for a matrix.

    Wide inputs of a layer keep their diagonal, as K-FAC does, but that of a sketch tells nothing.

    Raises:
        PreconditionerError: There are such.
    """
    sketched: list[Side] = []
    for block in columns.blocks:
        if isinstance(block, Product):
            sketched += [side for side in (block.left, block.right) if not side.is_exact]
        else:
            sketched.append(block.side)
    widest = max((side.width for side in sketched), default=0)
    if widest > WIDEST:
        raise PreconditionerError(
            f"The rows have {widest} columns together, whose curvature would be a matrix of "
            f"{8e-9 * widest**2:.1f} GB: curvature in an index takes {WIDEST} at most. Build it "
            f"with Projection(dim={WIDEST}) or less, or use run.explain(train, queries)."
        )


def _triangle(width: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(width, width)
    return rows, columns
