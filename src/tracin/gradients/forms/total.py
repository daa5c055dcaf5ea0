"""A parameter used in unlike places (tied embedding and head): the sum of its uses' gradients."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.aligned import aligned_products
from tracin.gradients.forms.computed import summed
from tracin.gradients.forms.dense import Dense
from tracin.gradients.forms.form import PerExampleGradient
from tracin.gradients.forms.outer import OuterProduct
from tracin.gradients.forms.rows import SparseRows
from tracin.gradients.forms.scaled_rows import ScaledRows
from tracin.gradients.forms.slot import Slot, stacked


@final
@dataclass(frozen=True, eq=False)
class SumOf(PerExampleGradient):
    """The sum of a few forms of unlike kinds, cross terms included."""

    forms: tuple[PerExampleGradient, ...]

    @property
    def examples(self) -> int:
        return self.forms[0].examples

    @property
    def device(self) -> torch.device:
        return self.forms[0].device

    @property
    def numbers(self) -> int:
        return self.forms[0].numbers

    @property
    def written(self) -> int:
        return sum(form.written for form in self.forms)

    def settled(self) -> "SumOf":
        return SumOf(tuple(form.settled() for form in self.forms))

    def part(self, start: int, stop: int) -> "SumOf":
        return SumOf(tuple(form.part(start, stop) for form in self.forms))

    def dense(self) -> Tensor:
        return torch.stack([form.dense() for form in self.forms]).sum(0)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return torch.stack([form.weighted_sum(weights) for form in self.forms]).sum(0)

    def add_weighted_sum(self, weights: Tensor, into: Tensor) -> None:
        for form in self.forms:
            form.add_weighted_sum(weights, into)

    def along_weighted_sum(self, vectors: Tensor, weights: Tensor) -> Tensor:
        each = [form.along_weighted_sum(vectors, weights) for form in self.forms]
        return torch.stack(each).sum(0)

    def squared_norm(self) -> Tensor:
        norms = torch.stack([form.squared_norm() for form in self.forms]).sum(0)
        for i, form in enumerate(self.forms):
            for other in self.forms[:i]:
                norms = norms + 2 * aligned_products(form, other)
        return norms

    def terms(self) -> Tensor:
        each = [(form, form.terms()) for form in self.forms]
        return torch.stack(
            [form.squared_norm() if terms is None else terms for form, terms in each]
        ).sum(0)


def total(forms: list[PerExampleGradient]) -> PerExampleGradient:
    """Add forms of the same parameter and the same examples, keeping factors where they add up.

    Outer products and rows of several uses are joined along positions, which adds the cross
    terms between uses by itself; all else is added up, where it is too large in blocks.
    """
    slots = [form for form in forms if isinstance(form, Slot)]
    if slots:
        forms = [form for form in forms if not isinstance(form, Slot)] + [stacked(slots)]
    if len(forms) == 1:
        return forms[0]
    outers = [form for form in forms if isinstance(form, OuterProduct)]
    rows = [form for form in forms if isinstance(form, SparseRows)]
    scales = [form for form in forms if isinstance(form, ScaledRows)]
    dense = [form.values for form in forms if isinstance(form, Dense)]
    others = [
        form
        for form in forms
        if not isinstance(form, OuterProduct | SparseRows | ScaledRows | Dense)
    ]
    joined: list[PerExampleGradient] = []
    if outers:
        left = torch.cat([form.kept_left for form in outers], 1)
        joined.append(OuterProduct(left, torch.cat([form.kept_right for form in outers], 1)))
    if rows:
        index = torch.cat([form.index for form in rows], 1)
        joined.append(SparseRows(index, torch.cat([form.values for form in rows], 1), rows[0].size))
    joined += scales
    if dense:
        others.append(Dense(torch.stack([each.flatten(1) for each in dense]).sum(0)))
    if others:
        joined.append(others[0] if len(others) == 1 else summed(others))
    return joined[0] if len(joined) == 1 else SumOf(tuple(joined))
