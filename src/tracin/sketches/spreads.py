"""Measures how far sketched dot products are off, on the examples that a plan was made from."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from tracin.gradients.forms import PerExampleGradient
from tracin.sketches.columns import Dot
from tracin.sketches.pilot import Pilot, cost, mean_of_pairs
from tracin.sketches.plan import Plan
from tracin.sketches.sketcher import Sketcher

# Draws of random numbers by which a block's spread is measured; not those of any checkpoint.
DRAWS = 8


@final
class Spreads:
    """Sketches the pilot's gradients a few times, batch by batch, and compares with its products.

    The formula with 1 / columns knows neither entries that are large in both gradients, which
    lessen the variance, nor projections of two sides, which raise it.

    Args:
        drafted: The plan without measured spreads.
        pilot: What takes the same gradients, at the latest when this does.
        draws: How many sketches of each gradient are compared.
    """

    def __init__(self, drafted: Plan, pilot: Pilot, draws: int = DRAWS) -> None:
        self._plan = drafted
        self._pilot = pilot
        self._draws = range(-draws, 0)
        blocks = enumerate(drafted.columns.blocks)
        self._sketched = [
            number for number, block in blocks if isinstance(block, Dot) and block.spread
        ]
        self._errors = dict.fromkeys(self._sketched, 0.0)
        self._sketchers: list[Sketcher] = []
        self._batch = 0

    def are_wanted(self, examples: int) -> bool:
        """Whether any block is a sketch, and there are two examples to multiply."""
        return bool(self._sketched) and examples > 1

    def begin(self, examples: int, device: torch.device) -> None:
        """Begin a batch of the pilot, in the order in which it took them."""
        if not self._sketchers:
            self._sketchers = [
                Sketcher(self._plan, device, draw=draw, has_norms=False) for draw in self._draws
            ]
        for sketcher in self._sketchers:
            sketcher.begin(examples)

    def add(self, name: str, form: PerExampleGradient) -> None:
        """Take a parameter's gradients of the batch."""
        for sketcher in self._sketchers:
            sketcher.add(name, form, 0)
            sketcher.forget(name)

    @torch.no_grad()
    def finish(self) -> None:
        """Finish the batch: compare."""
        exact = {
            number: products[self._batch]
            for number in self._sketched
            if (products := self._exact(number)) is not None
        }
        for sketcher in self._sketchers:
            rows = sketcher.rows()
            found = self._plan.columns.parts(rows, rows).cpu().double()
            for number, products in exact.items():
                gap = found[number] - products
                self._errors[number] += mean_of_pairs(gap.square()) / len(self._draws)
        self._batch += 1

    def plan(self) -> Plan:
        """The plan, with the spreads that were measured."""
        blocks = list(self._plan.columns.blocks)
        for number, error in self._errors.items() if self._batch else ():
            block, exact = blocks[number], self._exact(number)
            wanted = 0.0 if exact is None else cost(exact)
            if isinstance(block, Dot) and wanted > 0:
                blocks[number] = replace(block, spread=error / self._batch / wanted)
        columns = replace(self._plan.columns, blocks=tuple(blocks))
        return replace(self._plan, columns=columns)

    def _exact(self, number: int) -> Tensor | None:
        """The products of a block's parameters, [batches, examples, examples]; None without any."""
        members = [
            each
            for name, each in self._pilot.products().items()
            if getattr(self._plan.kinds[name], "block", -1) == number
        ]
        return torch.stack(members).sum(0) if members else None
