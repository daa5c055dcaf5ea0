"""How far a score of sketched rows may be from the exact one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tracin.sketches.columns import Columns, Product, Side


def standard_error(
    columns: Columns, rows: Tensor, queries: Tensor, weights: Sequence[float] | None = None
) -> Tensor:
    """The standard deviation over seeds of each score of a row with a query: [..., rows, queries].

    A sketched dot product varies by (|u|^2 |v|^2 + (u . v)^2) x spread, where the spread of d
    columns is about 1 / d: K. Weinberger et al., "Feature hashing for large scale multitask
    learning", 2009, https://doi.org/10.1145/1553374.1553516. A product of two independent estimates
    A and B varies by var(A) var(B) + var(A) B^2 + var(B) A^2, and exact columns not at all. Norms
    and products are those of the rows themselves.

    Args:
        columns: How the rows are laid out.
        rows: [..., rows, width].
        queries: [..., queries, width], with as many leading dimensions.
        weights: The weight of each group, [groups]; None for 1.

    Example:
        >>> from tracin.sketches.columns import Dot
        >>> columns = Columns((Dot(Side(0, 1, 1)), Dot(Side(1, 3, 50), spread=0.5)), width=3)
        >>> rows, queries = torch.tensor([[9.0, 2.0, 0.0]]), torch.tensor([[9.0, 0.0, 2.0]])
        >>> standard_error(columns, rows, queries)
        tensor([[2.8284]])
    """
    variance = torch.zeros(*rows.shape[:-1], queries.shape[-2], device=rows.device)
    queries = queries.to(rows.device)
    for block in columns.blocks:
        weight = 1.0 if weights is None else weights[block.group] ** 2
        if isinstance(block, Product):
            variance += weight * _of_product(block, rows, queries)
        elif block.spread:
            variance += weight * _moments(block.side, block.spread, rows, queries)[1]
    return variance.sqrt_()


def fill(width: int, numbers: int) -> float:
    """The probability that two of `numbers` numbers share one of `width` evenly filled columns.

    1 / width for few columns, falling to 0 where there is one for each.
    """
    return max(0.0, 1 / width - 1 / numbers) if numbers else 0.0


def _of_product(block: Product, rows: Tensor, queries: Tensor) -> Tensor:
    right, right_variance = _moments(block.right, _fill(block.right), rows, queries)
    left, left_variance = _moments(block.left, _fill(block.left), rows, queries)
    # The squares of estimates are too large by their variances.
    rights = (right.square() - right_variance).clamp_(min=0)
    if block.has_bias:
        rights = ((right + 1).square() - right_variance).clamp_(min=0)
    lefts = (left.square() - left_variance).clamp_(min=0)
    return right_variance * left_variance + right_variance * lefts + left_variance * rights


def _moments(side: Side, spread: float, rows: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """A side's dot products and their variances: [rows, queries] each."""
    these, those = side.of(rows), side.of(queries)
    products = these @ those.mT
    lengths = torch.linalg.vecdot(these, these).unsqueeze(-1)
    lengths = lengths * torch.linalg.vecdot(those, those).unsqueeze(-2)
    return products, (lengths + products.square()) * spread


def _fill(side: Side) -> float:
    return fill(side.width, side.numbers)
