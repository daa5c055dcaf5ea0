"""Products of two batches of outer products, by factors or written out a few rows at a time.

Written out, a gradient is never held whole: some of its rows are, for all examples and queries at
once. What this costs grows with the sum of both sides' positions, products of factors with their
product.
"""

import torch
from torch import Tensor

from tracin.gradients.forms.form import BLOCK, GPU_BLOCK, blocks
from tracin.gradients.forms.outer import OuterProduct
from tracin.gradients.forms.summed_products import multiplied

# How many multiplications take as long as one number that is written and read again.
TRAFFIC = 16
GPU_TRAFFIC = 64
GPU_TRAFFIC_IN_HALF = 512

# Examples whose rows are written out together, at most: more gain nothing.
TOGETHER = 512

# Numbers of both sides that are written out at once: blocks of a few rows multiply slowly.
WRITTEN = 16 * BLOCK


def outer_products(form: OuterProduct, query: OuterProduct) -> Tensor:
    """The dot product of each example's gradient with each query's, by the cheaper way.

    Args:
        form: The gradients of a batch of training examples.
        query: The same parameter's gradients of the queries.

    Returns:
        [examples, queries].
    """
    return by_factors(form, query) if factors_win(form, query) else by_rows(form, query)


def factors_win(form: OuterProduct, query: OuterProduct) -> bool:
    """Whether products of factors cost less than rows that are written out."""
    here, there = form.examples * form.positions, query.examples * query.positions
    each = traffic(form.kept_left)
    by_pairs = here * there * (sum(form.shape) + 2 * each)
    rows = here + there + form.examples * query.examples
    return by_pairs <= form.numbers * (rows + each * (form.examples + query.examples))


def traffic(like: Tensor) -> int:
    """How many multiplications a number costs that is written and read, where `like` is."""
    if like.device.type == "cpu":
        return TRAFFIC
    return GPU_TRAFFIC_IN_HALF if like.dtype.itemsize < 4 else GPU_TRAFFIC


def by_factors(form: OuterProduct, query: OuterProduct) -> Tensor:
    """The products of all pairs of positions, left times right: [examples, queries]."""
    queries, there = query.examples, query.positions
    lefts, rights = query.kept_left.flatten(0, 1).mT, query.kept_right.flatten(0, 1).mT
    out = []
    for at in blocks(form.examples, form.positions * queries * there, form.device):
        each = form.part(*at)
        products = multiplied(each.kept_left.flatten(0, 1), lefts)
        products = products.mul_(multiplied(each.kept_right.flatten(0, 1), rights))
        if form.positions * there > 1:
            products = products.view(each.examples, form.positions, queries, there).sum((1, 3))
        out.append(products)
    return torch.cat(out)


def by_rows(form: OuterProduct, query: OuterProduct, factors: Tensor | None = None) -> Tensor:
    """Rows of both sides' gradients, written out and multiplied a few at a time.

    Args:
        form: The gradients of a batch of training examples.
        query: The same parameter's gradients of the queries.
        factors: What each entry of the queries' gradients is multiplied by: [numbers].

    Returns:
        [examples, queries].
    """
    if factors is not None:
        factors = factors.view(form.shape)
    if form.shape[0] < form.shape[1]:  # the longer side is cut, so that rows are short
        form, query = form.transposed(), query.transposed()
        factors = None if factors is None else factors.mT
    dtype = torch.promote_types(form.kept_left.dtype, query.kept_left.dtype)
    # Rows are sums of products, and many products are added up: half precision would lose them.
    dtype = torch.promote_types(dtype, torch.float32)
    out = torch.zeros(form.examples, query.examples, dtype=dtype, device=form.device)
    together = min(TOGETHER, form.examples) + min(TOGETHER, query.examples)
    numbers = together * form.shape[1]
    most = WRITTEN if form.device.type == "cpu" else GPU_BLOCK
    step = max(1, most // numbers)
    for here in _runs(form.examples):
        some = form.part(*here)
        for first in range(0, form.shape[0], step):
            rows = slice(first, first + step)
            written = _rows(some, rows, None).to(dtype)
            for there in _runs(query.examples):
                asked = _rows(query.part(*there), rows, factors).to(dtype)
                out[slice(*here), slice(*there)] += _products(written, asked)
    return out


def _runs(examples: int) -> list[tuple[int, int]]:
    starts = range(0, examples, TOGETHER)
    return [(start, min(start + TOGETHER, examples)) for start in starts]


def _rows(form: OuterProduct, rows: slice, factors: Tensor | None) -> Tensor:
    """These rows of each gradient: [examples, rows x width]."""
    written = multiplied(form.kept_left[:, :, rows].mT, form.kept_right)
    if factors is not None:
        written = written * factors[rows].to(written)
    return written.flatten(1)


def _products(rows: Tensor, queries: Tensor) -> Tensor:
    """[examples, queries]; the longer operand comes first, which is up to three times as fast."""
    return rows @ queries.mT if len(rows) >= len(queries) else (queries @ rows.mT).mT
