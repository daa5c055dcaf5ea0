"""K-FAC in the columns of an index's rows: what multiplies a query's row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.errors import PreconditionerError
from tracin.index.row_moments import ColumnMoments
from tracin.preconditioners.second_moments import DampedInverse, Moments
from tracin.sketches.columns import Columns, Dot, Product, Side

# How near zero a query's constant may come, relative to its largest input.
_LEAST = 1e-9


@final
@dataclass(frozen=True, eq=False)
class RowCurvature:
    """The inverse curvature at one checkpoint, block by block.

    A block of two factors is multiplied on both sides, as K-FAC does with a layer; the columns of
    a dot product as one vector, by the inverse of their second moments. A layer whose factors are
    kept whole has K-FAC's own scores.

    Attributes:
        columns: How rows are laid out.
        inverses: Of each side's damped second moments; None where no gradient was.
    """

    columns: Columns
    inverses: Mapping[Side, DampedInverse | None]

    @classmethod
    def of(
        cls,
        columns: Columns,
        moments: ColumnMoments,
        damping: float,
        row_damping: float,
    ) -> "RowCurvature":
        """Invert the moments.

        Args:
            columns: How rows are laid out.
            moments: Of the rows.
            damping: Of sides of layers, in units of the mean eigenvalue of the whole side.
            row_damping: Of all other columns, in units of the mean eigenvalue of the gradients'
                own Fisher matrix, as far as the rows can have filled it.

        Raises:
            PreconditionerError: There is no damping: rows are rounded, so that a direction without
                gradients would be one of noise.
        """
        _refuse_no_damping(columns, damping, row_damping)
        inverses: dict[Side, DampedInverse | None] = {}
        for block in columns.blocks:
            if isinstance(block, Dot):
                inverses[block.side] = _inverse_of_dot(block.side, moments, row_damping)
                continue
            inverses[block.left] = _inverse(
                moments.of[block.left], moments.rows, damping, block.left
            )
            inverses[block.right] = _inverse(
                moments.of[block.right],
                moments.rows,
                damping,
                block.right,
                has_constant=block.has_bias,
            )
        return cls(columns, inverses)

    @property
    def numbers(self) -> int:
        """How many numbers it is, in float64."""
        return sum(one.inverse.numel() for one in self.inverses.values() if one is not None)

    def times(self, queries: Tensor) -> Tensor:
        """The queries' rows times the inverse: [queries, width], as rows of the same columns."""
        found = torch.zeros(queries.shape, dtype=torch.float64)
        for block in self.columns.blocks:
            if isinstance(block, Dot):
                part, _ = self._side(block.side, queries)
                _of(found, block.side).copy_(part)
                continue
            (left, _), (right, last) = (
                self._side(side, queries) for side in (block.left, block.right)
            )
            if last is not None:
                left, right = _with_unit_constant(left, right, last)
            _of(found, block.left).copy_(left)
            _of(found, block.right).copy_(right)
        return found.float()

    def _side(self, side: Side, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        rows, inverse = side.of(queries).double(), self.inverses[side]
        if inverse is None:
            return torch.zeros_like(rows), None
        found, last = inverse.times(rows.unsqueeze(0))
        return found[0], None if last is None else last[0]


def curvature_in_words(columns: Columns) -> str:
    """What curvature on such rows is, for people."""
    products = [block for block in columns.blocks if isinstance(block, Product)]
    whole = sum(block.left.is_exact and block.right.is_exact for block in products)
    dots = sum(block.side.width for block in columns.blocks if isinstance(block, Dot))
    pieces = []
    if whole:
        pieces.append(f"K-FAC of {whole} layer{'s' if whole > 1 else ''} with factors kept whole")
    if len(products) > whole:
        pieces.append(f"K-FAC of {len(products) - whole} with sketched factors")
    if dots:
        pieces.append(f"the Fisher matrix of {dots:,} other columns")
    return f"curvature from the rows: {' and '.join(pieces)}"


def is_kept_whole(columns: Columns) -> bool:
    """Whether every column belongs to a layer whose factors are kept whole."""
    return all(
        isinstance(block, Product) and block.left.is_exact and block.right.is_exact
        for block in columns.blocks
    )


def _with_unit_constant(left: Tensor, right: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the same scores, whose constant is 1 as in all rows.

    (r . right + last) (l . left) = (r . right / last + 1) (l . left last). Dividing and multiplying
    lose no precision, however small the constant; only zero would not come back.
    """
    least = (_LEAST * right.abs().amax(1)).clamp(min=1e-30)
    last = torch.where(last.abs() < least, torch.copysign(least, last), last).unsqueeze(1)
    return left * last, right / last


def _of(rows: Tensor, side: Side) -> Tensor:
    return rows[:, side.start : side.stop]


def _inverse_of_dot(side: Side, moments: ColumnMoments, damping: float) -> DampedInverse | None:
    """The inverse for the columns of a dot product.

    The mean eigenvalue is that of the gradients' own matrix of [numbers, numbers], whose trace a
    sketch keeps, and of which so many rows fill no more than as many directions.
    """
    filled = min(side.numbers, moments.rows)
    damping = damping * side.width / max(1, filled)
    return DampedInverse.of(
        moments.of[side], moments.rows, damping, torch.float64, has_constant=False
    )


def _inverse(
    moments: Moments,
    rows: int,
    damping: float,
    side: Side,
    *,
    has_constant: bool = False,
) -> DampedInverse | None:
    """The inverse for one side of a layer, damped as much as the whole side would be."""
    constant = int(has_constant)
    whole = max(side.numbers, side.width) + constant
    damping = damping * (side.width + constant) / whole
    return DampedInverse.of(moments, rows, damping, torch.float64, has_constant=has_constant)


def _refuse_no_damping(columns: Columns, damping: float, row_damping: float) -> None:
    is_asked = {type(block) for block in columns.blocks}
    lacking = [
        name
        for name, value, kind in (
            ("damping", damping, Product),
            ("row_damping", row_damping, Dot),
        )
        if value == 0 and kind in is_asked
    ]
    if lacking:
        raise PreconditionerError(
            f"The rows of an index are rounded numbers, and {lacking[0]}=0 would divide by their "
            "noise. Use tracin.KFAC(damping=0.3, row_damping=1.0), or run.explain(train, queries)."
        )
