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
_DRAWS = range(-8, 0)


@final
class Spreads:
    """Sketches the pilot's gradients a few times, batch by batch, and compares with its products.

    The formula with 1 / columns knows neither entries that are large in both gradients, which
    lessen the variance, nor projections of two sides, which raise it.

    Args:
        drafted: The plan without measured spreads.
        pilot: What it was made from.
    """

    def __init__(self, drafted: Plan, pilot: Pilot) -> None:
        self._plan = drafted
        self._exact: dict[int, Tensor] = {}  # [batches, examples, examples]
        self._errors: dict[int, float] = {}
        self._sketchers: list[Sketcher] = []
        self._batch = 0
        products = pilot.products()
        self._has_pairs = any(each.shape[-1] > 1 for each in products.values())
        for number, block in enumerate(drafted.columns.blocks):
            members = [
                each
                for name, each in products.items()
                if getattr(drafted.kinds[name], "block", -1) == number
            ]
            if isinstance(block, Dot) and block.spread and members:
                self._exact[number] = torch.stack(members).sum(0)
                self._errors[number] = 0.0

    @property
    def are_wanted(self) -> bool:
        """Whether any block is a sketch, and there are two examples to multiply."""
        return bool(self._exact) and self._has_pairs

    def begin(self, examples: int, device: torch.device) -> None:
        """Begin a batch of the pilot, in the order in which it took them."""
        if not self._sketchers:
            self._sketchers = [
                Sketcher(self._plan, device, draw=draw, has_norms=False) for draw in _DRAWS
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
        for sketcher in self._sketchers:
            rows = sketcher.rows()
            found = self._plan.columns.parts(rows, rows).cpu().double()
            for number, exact in self._exact.items():
                gap = found[number] - exact[self._batch]
                self._errors[number] += mean_of_pairs(gap.square()) / len(_DRAWS) / len(exact)
        self._batch += 1

    def plan(self) -> Plan:
        """The plan, with the spreads that were measured."""
        blocks = list(self._plan.columns.blocks)
        for number, error in self._errors.items() if self._batch else ():
            block, wanted = blocks[number], cost(self._exact[number])
            if isinstance(block, Dot) and wanted > 0:
                blocks[number] = replace(block, spread=error / wanted)
        columns = replace(self._plan.columns, blocks=tuple(blocks))
        return replace(self._plan, columns=columns)
