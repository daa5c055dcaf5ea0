"""Gradients that are written out a block at a time, whenever they are needed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms.dense import Dense
from tracin.gradients.forms.form import PerExampleGradient, by_blocks

Make = Callable[[int, int], Tensor]


@final
@dataclass(frozen=True, eq=False)
class Computed(PerExampleGradient):
    """Per-example gradients that have no factors, of a parameter too large to write out for all.

    Attributes:
        make: Called as make(start, stop); gives the gradients of these examples, written out:
            [stop - start, numbers].
        count: How many examples there are.
        size: How many numbers one example's gradient has.
        effort: How many numbers are made on the way to it.
        place: Where the gradients are.
        first: What number `make` knows the first example by.
    """

    make: Make
    count: int
    size: int
    effort: int
    place: torch.device
    first: int = 0

    @property
    def examples(self) -> int:
        return self.count

    @property
    def device(self) -> torch.device:
        return self.place

    @property
    def numbers(self) -> int:
        return self.size

    @property
    def written(self) -> int:
        return self.effort

    def settled(self) -> Dense:
        return Dense(self.dense())

    def part(self, start: int, stop: int) -> "Computed":
        stop = min(stop, self.count)
        return replace(self, count=max(0, stop - start), first=self.first + start)

    def dense(self) -> Tensor:
        def one(start: int, stop: int) -> Tensor:
            rows = self.make(self.first + start, self.first + stop)
            return rows.reshape(stop - start, self.size)

        return by_blocks(self.count, self.effort, self.place, one)

    def squared_norm(self) -> Tensor:
        return self.written_norm()


def summed(forms: list[PerExampleGradient]) -> Computed:
    """The sum of forms of the same parameter and the same examples, added up block by block."""

    def make(start: int, stop: int) -> Tensor:
        total = forms[0].part(start, stop).dense()
        for form in forms[1:]:
            total = total + form.part(start, stop).dense()
        return total

    first = forms[0]
    written = sum(form.written for form in forms)
    return Computed(make, first.examples, first.numbers, written, first.device)
