"""Gradients of which each entry is multiplied by a factor of its own."""

import torch
from torch import Tensor

from tracin.gradients.forms.dense import Dense
from tracin.gradients.forms.form import PerExampleGradient, blocks
from tracin.gradients.forms.outer import OuterProduct
from tracin.gradients.forms.rows import SparseRows
from tracin.gradients.forms.scaled_entries import ScaledEntries
from tracin.gradients.forms.total import SumOf


@torch.no_grad()
def scaled(form: PerExampleGradient, factors: Tensor) -> Dense | SparseRows:
    """The gradients times factors that may be unlike for all entries: [numbers].

    Rows stay rows. A sum of outer products does not stay one, so all else is written out: scale
    the side that has fewer examples.
    """
    if isinstance(form, SparseRows):
        return form.scaled(factors)
    parts = blocks(form.examples, form.written, form.device)
    first = form.part(*parts[0]).dense()
    rows = first.new_empty(form.examples, form.numbers)
    for start, stop in parts:
        part = form.part(start, stop).dense() if start else first
        torch.mul(part, factors.to(part), out=rows[start:stop])
    return Dense(rows)


@torch.no_grad()
def scaled_factors(form: PerExampleGradient, factors: Tensor) -> PerExampleGradient:
    """The same, with outer products kept as such beside the factors."""
    if isinstance(form, SumOf):
        return SumOf(tuple(scaled_factors(each, factors) for each in form.forms))
    return ScaledEntries(form, factors) if isinstance(form, OuterProduct) else scaled(form, factors)


@torch.no_grad()
def scaled_in_parts(form: PerExampleGradient, factors: Tensor) -> ScaledEntries | SparseRows:
    """As `scaled`, but what is written out is so part by part, by whoever reads it."""
    return form.scaled(factors) if isinstance(form, SparseRows) else ScaledEntries(form, factors)
