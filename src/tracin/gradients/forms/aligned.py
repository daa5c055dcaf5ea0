"""Products of two forms of the same examples, example by example: the cross terms of a sum."""

import torch
from torch import Tensor

from tracin.gradients.forms.form import PerExampleGradient, by_blocks
from tracin.gradients.forms.outer import OuterProduct
from tracin.gradients.forms.rows import SparseRows
from tracin.gradients.forms.scaled_rows import ScaledRows


def aligned_products(form: PerExampleGradient, other: PerExampleGradient) -> Tensor:
    """The dot product of each example's gradient with the same example's other one: [examples]."""
    if isinstance(form, OuterProduct):
        form, other = other, form
    if isinstance(form, SparseRows) and isinstance(other, OuterProduct):
        return _aligned_rows_outer(form, other)
    if isinstance(form, ScaledRows) and isinstance(other, OuterProduct):
        return _aligned_scaled_rows_outer(form, other)
    most = max(form.written, other.written)

    def one(start: int, stop: int) -> Tensor:
        return torch.linalg.vecdot(form.part(start, stop).dense(), other.part(start, stop).dense())

    return by_blocks(form.examples, most, form.device, one)


def _aligned_rows_outer(form: SparseRows, other: OuterProduct) -> Tensor:
    def one(start: int, stop: int) -> Tensor:
        rows, outer = form.part(start, stop), other.part(start, stop)
        products = torch.bmm(rows.values, outer.right.mT)  # [examples, here, there]
        picked = torch.gather(
            outer.left, 2, rows.index.unsqueeze(1).expand(-1, outer.positions, -1)
        )  # [examples, there, here]
        return (products * picked.mT).sum((1, 2))

    return by_blocks(form.examples, form.index.shape[1] * other.positions, form.device, one)


def _aligned_scaled_rows_outer(form: ScaledRows, other: OuterProduct) -> Tensor:
    if other.left.shape[2] != form.matrix.shape[0]:
        raise ValueError("the outer products' left sides are no rows of the matrix")
    moved = other.right.flatten(0, 1) @ form.matrix.mT.to(other.right)  # [.., rows]
    met = (moved.view_as(other.left) * other.left).sum(1)  # [examples, rows]
    return torch.linalg.vecdot(met, form.scales.to(met))
