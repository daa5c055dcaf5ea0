"""How a row of numbers is laid out, and what the score of two rows is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from tracin.errors import IndexingError
from tracin.schema import Fields, Items, Kinds, Number, Truth, Whole


@final
@dataclass(frozen=True)
class Side:
    """Columns start to stop, which stand for `numbers` numbers."""

    start: int
    stop: int
    numbers: int

    @property
    def width(self) -> int:
        """The number of columns."""
        return self.stop - self.start

    @property
    def is_exact(self) -> bool:
        """Whether every number has its own column."""
        return self.numbers <= self.width

    def of(self, rows: Tensor) -> Tensor:
        """These columns in float32: [..., width]."""
        return rows[..., self.start : self.stop].float()


@final
@dataclass(frozen=True)
class Dot:
    """Columns whose score is their dot product.

    Attributes:
        side: The columns.
        group: The number of the parameters' group.
        spread: The variance of the score over seeds, in units of |u|^2 |v|^2 + (u . v)^2; 0 where
            the columns are exact.
    """

    side: Side
    group: int = 0
    spread: float = 0.0


@final
@dataclass(frozen=True)
class Product:
    """The two factors of a matrix's gradient at one position.

    Their score is (right . right' + 1 for a bias) x (left . left'): the rank-1 identity of a fully
    connected layer, by which in + out columns stand for in x out numbers.

    Attributes:
        left: The columns of the output's gradient, which is also the bias's.
        right: The columns of the layer's input.
        has_bias: Whether the layer's bias is in the score.
        group: The number of the parameters' group.
    """

    left: Side
    right: Side
    has_bias: bool
    group: int = 0


Block = Dot | Product


@final
@dataclass(frozen=True)
class Columns:
    """A row's blocks of columns; the score of two rows is the sum of the blocks' scores.

    Example:
        >>> columns = Columns((Dot(Side(0, 2, 2)),), width=2)
        >>> columns.scores(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[11.]])
    """

    blocks: tuple[Block, ...]
    width: int

    @cached_property
    def groups(self) -> int:
        """The number of groups."""
        return 1 + max((block.group for block in self.blocks), default=0)

    @cached_property
    def has_factors(self) -> bool:
        """Whether scores are not linear in a row: some are products of two factors' scores."""
        return any(isinstance(block, Product) for block in self.blocks)

    @cached_property
    def sides(self) -> tuple[Side, ...]:
        """The columns that share a scale, in order: factors of a row differ in size."""
        found: list[Side] = []
        for block in self.blocks:
            found += [block.side] if isinstance(block, Dot) else [block.left, block.right]
        return tuple(sorted(found, key=lambda side: (side.start, side.stop)))

    def scores(
        self,
        rows: Tensor,
        queries: Tensor,
        weights: Sequence[float] | None = None,
        scales: Tensor | None = None,
    ) -> Tensor:
        """The score of every row with every query: [rows, queries], float32.

        Args:
            rows: [rows, width], of any floating type.
            queries: [queries, width].
            weights: The weight of each group, [groups]; None for 1.
            scales: The factors of the columns of each of `sides`, [rows, sides], if `rows` does not
                contain them yet; None for 1. Multiplying scores is cheaper than multiplying rows.

        Raises:
            IndexingError: Rows of another width, or another number of weights.
        """
        self._check(rows)
        self._check(queries)
        queries = queries.to(rows.device)
        columns = () if scales is None else zip(self.sides, scales.split(1, dim=1), strict=True)
        scale_of = dict(columns)
        total: Tensor | None = None
        for weight, blocks in self._weighted(weights):
            for share in _shares(blocks, rows, queries, scale_of):
                share = share if weight == 1 else share.mul_(weight)
                total = share if total is None else total.add_(share)
        if total is None:
            return torch.zeros(len(rows), len(queries), device=rows.device)
        return total

    def parts(self, rows: Tensor, queries: Tensor) -> Tensor:
        """Each block's share of the scores: [blocks, rows, queries], float32."""
        self._check(rows)
        self._check(queries)
        queries = queries.to(rows.device)
        shares = [_share(block, rows, queries, {}) for block in self.blocks]
        return torch.stack(shares) if shares else torch.zeros(0, len(rows), len(queries))

    def squared_lengths(self, rows: Tensor, weights: Sequence[float] | None = None) -> Tensor:
        """The score of each row with itself: [rows], float32."""
        self._check(rows)
        total = torch.zeros(len(rows), device=rows.device)
        for weight, blocks in self._weighted(weights):
            for block in blocks:
                if isinstance(block, Dot):
                    total += weight * _squares(block.side.of(rows))
                else:
                    right = _squares(block.right.of(rows)) + int(block.has_bias)
                    total += weight * right * _squares(block.left.of(rows))
        return total

    def to_json(self) -> dict[str, Any]:
        """As dicts, lists and numbers, for a manifest."""
        blocks = [{"kind": _NAMES[type(block)], **asdict(block)} for block in self.blocks]
        return {"width": self.width, "blocks": blocks}

    @classmethod
    def from_json(cls, content: Any) -> "Columns":
        """The columns of what `to_json` returned.

        Raises:
            IndexingError: The content is something else.
        """
        try:
            fields = SCHEMA(content, "columns")
            found = cls(tuple(map(_block, fields["blocks"])), fields["width"])
            _refuse_odd(found)
            return found
        except ValueError as error:
            raise IndexingError(
                f"Cannot read the columns of an index ({error}): the file was changed, or written "
                "by another version. Build the index again."
            ) from error

    def _weighted(self, weights: Sequence[float] | None) -> list[tuple[float, Sequence[Block]]]:
        if weights is None:
            return [(1.0, self.blocks)]
        if len(weights) != self.groups:
            raise IndexingError(
                f"The columns have {self.groups} groups of parameters, each with its own "
                f"weight; got {len(weights)} weights."
            )
        return list(zip(weights, self._by_group, strict=True))

    @cached_property
    def _by_group(self) -> tuple[tuple[Block, ...], ...]:
        return tuple(
            tuple(block for block in self.blocks if block.group == group)
            for group in range(self.groups)
        )

    def _check(self, rows: Tensor) -> None:
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise IndexingError(
                f"Expected rows of {self.width} numbers, [rows, {self.width}]; got "
                f"{list(rows.shape)}. Sketch training examples and queries with the same plan."
            )


def _shares(
    blocks: Sequence[Block], rows: Tensor, queries: Tensor, scales: Mapping[Side, Tensor]
) -> list[Tensor]:
    """The blocks' scores; consecutive dot products as one, unless each has a scale of its own."""
    shares: list[Tensor] = []
    run: Side | None = None
    for block in blocks:
        if not isinstance(block, Dot) or scales:
            shares.append(_share(block, rows, queries, scales))
        elif run is not None and run.stop == block.side.start:
            run = Side(run.start, block.side.stop, 0)
        else:
            if run is not None:
                shares.append(_products(run, rows, queries))
            run = block.side
    if run is not None:
        shares.append(_products(run, rows, queries))
    return shares


def _share(block: Block, rows: Tensor, queries: Tensor, scales: Mapping[Side, Tensor]) -> Tensor:
    if isinstance(block, Dot):
        return _products(block.side, rows, queries, scales.get(block.side))
    share = _products(block.right, rows, queries, scales.get(block.right))
    if block.has_bias:
        share += 1
    return share.mul_(_products(block.left, rows, queries, scales.get(block.left)))


def _products(side: Side, rows: Tensor, queries: Tensor, scale: Tensor | None = None) -> Tensor:
    products = side.of(rows) @ side.of(queries).mT
    return products if scale is None else products.mul_(scale)


def _squares(rows: Tensor) -> Tensor:
    return torch.linalg.vecdot(rows, rows)


_NAMES = {Dot: "dot", Product: "product"}
_SIDE = Fields({"start": Whole(), "stop": Whole(), "numbers": Whole()})
SCHEMA = Fields(
    {
        "width": Whole(1, 1 << 31),
        "blocks": Items(
            Kinds(
                {
                    "dot": {"side": _SIDE, "group": Whole(), "spread": Number(0)},
                    "product": {
                        "left": _SIDE,
                        "right": _SIDE,
                        "has_bias": Truth(),
                        "group": Whole(),
                    },
                }
            ),
            1,
        ),
    }
)


def _block(content: Mapping[str, Any]) -> Block:
    group = content["group"]
    if content["kind"] == "dot":
        return Dot(Side(**content["side"]), group, content["spread"])
    left, right = Side(**content["left"]), Side(**content["right"])
    return Product(left, right, content["has_bias"], group)


def _refuse_odd(columns: Columns) -> None:
    if any(not side.start <= side.stop <= columns.width for side in columns.sides):
        raise ValueError(f"a block has columns beyond the {columns.width} of a row")
    groups = {block.group for block in columns.blocks}
    if groups != set(range(len(groups))):
        raise ValueError("the groups of the blocks are not counted from 0")
