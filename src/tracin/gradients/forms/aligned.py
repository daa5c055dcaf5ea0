"""Products of two forms of the same examples, example by example: the cross terms of a sum."""

import torch
from torch import Tensor

from tracin.gradients.forms.form import Form, blocks
from tracin.gradients.forms.outer import Outer
from tracin.gradients.forms.rows import Rows


def aligned(form: Form, other: Form) -> Tensor:
    """The dot product of each example's gradient with the same example's other one: [examples]."""
    if isinstance(form, Outer) and isinstance(other, Rows):
        form, other = other, form
    if isinstance(form, Rows) and isinstance(other, Outer):
        return _aligned_rows_outer(form, other)
    return torch.cat(
        [
            torch.linalg.vecdot(form.part(*at).dense(), other.part(*at).dense())
            for at in blocks(form.examples, form.numbers, form.device)
        ]
    )


def _aligned_rows_outer(form: Rows, other: Outer) -> Tensor:
    out = []
    for at in blocks(form.examples, form.index.shape[1] * other.positions, form.device):
        rows, outer = form.part(*at), other.part(*at)
        products = torch.bmm(rows.values, outer.right.mT)  # [examples, here, there]
        picked = torch.gather(
            outer.left, 2, rows.index.unsqueeze(1).expand(-1, outer.positions, -1)
        )  # [examples, there, here]
        out.append((products * picked.mT).sum((1, 2)))
    return torch.cat(out)
