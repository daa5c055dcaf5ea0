"""Products of a batch's gradients with those of queries, by whichever path costs least."""

from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.cancellation import cancelled
from tracin.gradients.forms.dense import Dense
from tracin.gradients.forms.form import PerExampleGradient, blocks
from tracin.gradients.forms.outer import OuterProduct
from tracin.gradients.forms.outer_products import (
    WRITTEN,
    by_rows,
    outer_products,
)
from tracin.gradients.forms.patches import ConvFactors
from tracin.gradients.forms.rows import SparseRows
from tracin.gradients.forms.scaled_entries import ScaledEntries
from tracin.gradients.forms.stacked import Stacked
from tracin.gradients.forms.streamed import Streamed
from tracin.gradients.forms.summed_products import multiplied
from tracin.gradients.forms.total import SumOf
from tracin.late_checks import LateChecks

# One query's product as a convolution costs about one forward convolution, writing the gradients
# out about two: up to this many queries the convolution wins.
FEW_QUERIES = 2


# Numbers of a set of queries that may always be written out: 64 MB in float32.
SMALL = 1 << 24

# Rows that meet a query's matrix at least, if there are as many, for each time that it is read.
ROWS = 512


@final
class ProductCache:
    """The last product of output gradients, which a layer's weight and bias have in common.

    With one position, the bias's product is the left factor of the weight's: (a . a' + 1)(e . e').
    """

    def __init__(self) -> None:
        self._of: tuple[Tensor, Tensor] | None = None
        self._product: Tensor | None = None

    def product(self, rows: Tensor, queries: Tensor) -> Tensor:
        """The product of rows with queries, computed once for the same two: [examples, queries]."""
        of = self._of
        if of is None or not (_is_same(of[0], rows) and _is_same(of[1], queries)):
            self._of, self._product = (rows, queries), None
        if self._product is None:
            self._product = multiplied(rows, queries.mT)
        return self._product


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def pairs(
    form: PerExampleGradient, query: PerExampleGradient, cache: ProductCache | None = None
) -> Tensor:
    """The dot product of each example's gradient with each query's: [examples, queries].

    Args:
        form: The gradients of a batch of training examples.
        query: The same parameter's gradients of the queries, as `as_query` gives them.
        cache: Kept from one parameter to the next of the same batch.
    """
    if cache is not None and isinstance(query, Dense | OuterProduct):
        shared = _shared(form, query, cache)
        if shared is not None:
            return shared
    if isinstance(form, SumOf):
        return torch.stack([pairs(each, query) for each in form.forms]).sum(0)
    if isinstance(query, SumOf):
        return torch.stack([pairs(form, each) for each in query.forms]).sum(0)
    if isinstance(form, OuterProduct) and isinstance(query, OuterProduct):
        return outer_products(form, query)
    if isinstance(form, SparseRows) and isinstance(query, SparseRows):
        return _rows_rows(form, query)
    if isinstance(form, SparseRows) and isinstance(query, OuterProduct):
        return _rows_outer(form, query)
    if isinstance(form, OuterProduct) and isinstance(query, SparseRows):
        return _rows_outer(query, form).mT
    if isinstance(form, Stacked) and isinstance(query, Stacked):
        each = zip(form.each, query.each, strict=True)
        return torch.stack([outer_products(one, other) for one, other in each]).sum(0)
    if isinstance(query, Streamed):
        if isinstance(form, OuterProduct):
            return by_rows(form, query.inner, query.factors)
        if isinstance(form, SparseRows) and query.factors is not None:
            return _rows_outer(form.scaled(query.factors), query.inner)
    if isinstance(query, Dense):
        return _with_dense(form, query.dense())
    # Written out for this product alone: never all queries at once.
    runs = blocks(query.examples, query.written, query.device, WRITTEN)
    columns = [_with_dense(form, query.part(*run).dense()) for run in runs]
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1)


def as_query(
    form: PerExampleGradient,
    *,
    queries: int | None = None,
    is_roomy: bool = True,
    squares: Tensor | None = None,
    checks: LateChecks | None = None,
) -> PerExampleGradient:
    """The form in which a set of queries costs the least to multiply with many batches.

    Factors are kept where products of factors are cheaper than products of matrices (queries x
    positions^2 x (in + out) against (positions + queries) x in x out); all else is written out once
    if there is room for it. If not, the smaller of both forms is kept. Factors whose terms cancel
    (`cancellation.py`) are multiplied written out in any case.

    Args:
        form: The gradients of the queries, or of the first of them.
        queries: How many there are in all; None for those of `form`.
        is_roomy: Whether the gradients of all may be written out.
        squares: The squared lengths of the gradients, if they are known: [examples].
        checks: What takes note of factors whose terms cancel, which are then taken for such that
            do not; None looks at once.
    """
    count = form.examples if queries is None else queries
    if isinstance(form, ScaledEntries) and isinstance(form.inner, OuterProduct):
        inner = form.inner
        if is_roomy or _held(inner) >= form.numbers:
            return Dense(form.dense())
        return Streamed(inner, form.factors)
    if isinstance(form, SumOf):
        if count * form.numbers <= SMALL or (not is_roomy and _held(form) >= form.numbers):
            return Dense(form.dense())
        if is_roomy:
            return Dense(form.dense()) if _has_cancelled(form, squares, checks) else form
        each = [
            as_query(one, queries=count, is_roomy=is_roomy, checks=checks) for one in form.forms
        ]
        return SumOf(tuple(each))
    if isinstance(form, OuterProduct) and is_roomy:
        factored = count * form.positions**2 * sum(form.shape)
        if factored >= (form.positions + count) * form.numbers:
            return Dense(form.dense())  # whether terms cancel or not
    if _has_cancelled(form, squares, checks):
        if is_roomy or not isinstance(form, OuterProduct) or _held(form) >= form.numbers:
            return Dense(form.dense())
        return Streamed(form)
    if isinstance(form, OuterProduct):
        return form if is_roomy or _held(form) < form.numbers else Dense(form.dense())
    if isinstance(form, Stacked):
        first = as_query(form.each[0], queries=count, is_roomy=is_roomy, checks=checks)
        return form if isinstance(first, OuterProduct) else Dense(form.dense())
    if isinstance(form, SparseRows):
        is_small = count * form.numbers <= SMALL or _held(form) >= form.numbers
        return Dense(form.dense()) if is_small else form
    return Dense(form.dense())


def _has_cancelled(
    form: PerExampleGradient, squares: Tensor | None, checks: LateChecks | None
) -> bool:
    terms = form.terms()
    if terms is None:
        return False
    lost = cancelled(form.squared_norm() if squares is None else squares, terms).any()
    if checks is None:
        return bool(lost)
    checks.note(lost)
    return False


def _held(form: PerExampleGradient) -> int:
    """How many numbers the factors of one example have."""
    match form:
        case OuterProduct():
            return form.positions * (form.left.shape[2] + form.right.shape[2])
        case SparseRows():
            return form.values[0].numel()
        case ScaledEntries():
            return _held(form.inner)
        case SumOf():
            return sum(_held(each) for each in form.forms)
    return form.numbers


def added(form: PerExampleGradient) -> PerExampleGradient:
    """The sum of all examples' gradients, as the gradients of one example."""
    if isinstance(form, SparseRows):
        return SparseRows(
            form.index.reshape(1, -1), form.values.flatten(0, 1).unsqueeze(0), form.size
        )
    ones = torch.ones(form.examples, device=form.device)
    return Dense(form.weighted_sum(ones).unsqueeze(0))


def _shared(
    form: PerExampleGradient, query: Dense | OuterProduct, cache: ProductCache
) -> Tensor | None:
    """The product of a layer with one position, if its factors are at hand."""
    if isinstance(form, Dense) and isinstance(query, Dense):
        return cache.product(form.dense(), query.dense())
    if not (isinstance(form, OuterProduct) and isinstance(query, OuterProduct)):
        return None
    if (form.positions, query.positions) != (1, 1):
        return None
    product = cache.product(form.kept_left[:, 0], query.kept_left[:, 0])
    right = multiplied(form.kept_right[:, 0], query.kept_right[:, 0].mT)
    return right.mul_(product) if right.dtype == product.dtype else right * product


def _rows_rows(form: SparseRows, query: SparseRows) -> Tensor:
    queries, there = query.index.shape
    here = form.index.shape[1]
    out = []
    for at in blocks(form.examples, here * queries * there, form.device):
        each = form.part(*at)
        products = multiplied(each.values.flatten(0, 1), query.values.flatten(0, 1).mT)
        products *= each.index.reshape(-1, 1) == query.index.reshape(1, -1)
        out.append(products.view(each.examples, here, queries, there).sum((1, 3)))
    return torch.cat(out)


def _rows_outer(form: SparseRows, query: OuterProduct) -> Tensor:
    """Row t meets the outer products' left entries at its own index."""
    queries, there = query.examples, query.positions
    here = form.index.shape[1]
    lefts = query.left.flatten(0, 1).mT  # [out = table size, queries x positions]
    rights = query.right.flatten(0, 1).mT
    out = []
    for at in blocks(form.examples, here * queries * there, form.device):
        each = form.part(*at)
        products = multiplied(each.values.flatten(0, 1), rights)
        products *= lefts[each.index.flatten()]
        out.append(products.view(each.examples, here, queries, there).sum((1, 3)))
    return torch.cat(out)


def _with_dense(form: PerExampleGradient, query: Tensor) -> Tensor:  # query [queries, numbers]
    queries = query.shape[0]
    if isinstance(form, SparseRows):
        return _rows_dense(form, query)
    if isinstance(form, ConvFactors) and queries <= FEW_QUERIES:
        return torch.stack([form.along(each) for each in query], 1)
    if isinstance(form, ScaledEntries) and queries <= FEW_QUERIES:
        return _with_dense(form.inner, query * form.factors.to(query))
    if isinstance(form, Stacked):
        return _stacked_dense(form, query)
    if isinstance(form, OuterProduct):
        here = form.positions
        if queries * here < 1.5 * (queries + here):
            return _outer_dense(form, query)
    return form.project(query)


def _stacked_dense(form: Stacked, query: Tensor) -> Tensor:
    matrices = query.view(query.shape[0], form.matrices, -1)
    each = [_with_dense(one, matrices[:, m]) for m, one in enumerate(form.each)]
    return torch.stack(each).sum(0)


def _outer_dense(form: OuterProduct, query: Tensor) -> Tensor:
    """Push the right factors through each query's matrix, then meet the left ones."""
    out, _ = form.shape
    columns = [
        _outer_few_dense(form, query[start:stop])
        for start, stop in blocks(query.shape[0], ROWS * out, form.device)
    ]
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1)


def _outer_few_dense(form: OuterProduct, query: Tensor) -> Tensor:
    queries, (out, _) = query.shape[0], form.shape
    matrices = query.reshape(queries * out, -1).mT
    products = []
    for at in blocks(form.examples, form.positions * queries * out, form.device):
        each = form.part(*at)
        moved = multiplied(each.right.flatten(0, 1), matrices).view(-1, queries, out)
        met = torch.linalg.vecdot(moved, each.left.flatten(0, 1).unsqueeze(1).to(moved))
        products.append(met.view(each.examples, -1, queries).sum(1))
    return torch.cat(products)


def _rows_dense(form: SparseRows, query: Tensor) -> Tensor:
    here, width = form.values.shape[1:]
    table = query.reshape(query.shape[0], form.size, width)
    out = form.values.new_empty(form.examples, query.shape[0])
    for start, stop in blocks(form.examples, here * width, form.device):
        each = form.part(start, stop)
        index, values = each.index.flatten(), each.values.flatten(0, 1)
        for q, rows in enumerate(table):
            products = torch.linalg.vecdot(rows[index].to(values), values)
            out[start:stop, q] = products.view(each.examples, here).sum(1)
    return out
