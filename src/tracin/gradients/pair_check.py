"""The check of the gradient methods on pairs of examples, before the first pass.

The fast method on two examples must give what autograd gives on each alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from tracin.data import Batch, length, part
from tracin.data.batches import structure
from tracin.errors import TracInError, UnsupportedModelError
from tracin.gradients.batch_pass import BatchPass
from tracin.gradients.coverage import Covered, GradientMethod
from tracin.gradients.forms import Dense
from tracin.gradients.method_table import MethodTable
from tracin.gradients.repeatable import refuse_unrepeatable
from tracin.gradients.second_opinion import beyond_rounding
from tracin.gradients.self_check import (
    Alone,
    alone,
    are_apart,
    differences,
    refuse_coupled,
    weighted_sum,
)
from tracin.gradients.sharded_refusal import without_fast_method
from tracin.gradients.traced_model import TracedModel
from tracin.gradients.visit import Visit
from tracin.gradients.vmapped import vmap_gradients
from tracin.out_of_memory import is_out_of_memory
from tracin.plain_text import first_line
from tracin.sharding import each_says

# Different factors for the two examples of a pair, so that mixing them up changes the sum.
_FACTORS = torch.tensor([0.7, -1.3])

# How many pairs are compared for a second opinion, at most.
_OPINIONS = 16

# How many examples are compared in all halves at most.
COMPARED = 16

_GAP = "its rules and autograd differ by {:.1e}"


@final
@dataclass(frozen=True)
class LossesApart:
    """The losses of some examples of a batch, in smaller batches.

    Attributes:
        groups: The rows of each smaller batch.
        losses: Those of the groups' rows, one group after the other: [rows].
    """

    groups: list[list[int]]
    losses: Tensor


@dataclass(frozen=True)
class _Opinion:
    """What one pair of examples says of the fast method."""

    pair: Batch
    apart: Alone
    losses: Tensor | None  # those of the fast method, if it could be used
    missed: dict[str, str]  # the parameters that it cannot cover, and why
    is_agreed: bool  # whether a second opinion cannot change anything
    found: Mapping[str, Tensor] = field(default_factory=dict)  # the fast sums of factor x gradient
    gaps: Mapping[str, float] = field(default_factory=dict)  # how far these are from autograd's
    is_finite: bool = True  # whether there is anything to compare with


@final
class PairCheck:
    """Settles each parameter's method on a few pairs of examples, drawn from a batch.

    Where the fast method and autograd disagree on one pair, other pairs give a second opinion: a
    ReLU whose input is zero but for rounding may switch with the batch size.

    Args:
        traced: The model, its loss and its parameters.
        methods: Where the methods are kept.
        passes: Runs the fast method.
        random: Draws the pairs; the ranks of a sharded model draw the same ones.
    """

    def __init__(
        self,
        traced: TracedModel,
        methods: MethodTable,
        passes: BatchPass,
        random: torch.Generator,
    ) -> None:
        self._traced = traced
        self._methods = methods
        self._passes = passes
        self._random = random
        self._structure: list[tuple[str, Any]] | None = None  # of batches that were checked

    def check(self, batch: Batch, tolerance: float) -> LossesApart | None:
        """Settle the methods on `batch`; at later weights, compare only losses.

        Returns:
            Losses in smaller batches, for the audit; None if they are not finite.

        Raises:
            LossError: The loss draws random numbers, or changes state.
            CoupledExamplesError: Examples are not independent of their batch.
            UnsupportedModelError: The model is sharded, and the fast method misses a parameter.
        """
        traced = self._traced
        self._methods.begin_with(Covered(GradientMethod.FAST, "rules"))
        pairs = self._pairs(length(batch))
        first = part(batch, pairs[0])
        if structure(batch) == self._structure and not traced.is_sharded:
            # The methods are known, and the audit compares gradients.
            return self._compare_losses(first, pairs[0], tolerance)
        opinion = self._opinion(first, tolerance)
        checked = self._apart(batch, pairs[0], opinion.apart.losses) if opinion.is_finite else None
        if opinion.is_finite:
            refuse_unrepeatable(traced, first, opinion.apart.losses, tolerance)
        for pair in pairs[1:]:
            if opinion.is_agreed:
                break
            opinion = self._opinion(part(batch, pair), tolerance)
        if not opinion.is_finite:
            return checked  # nothing can be compared; the pass itself will name the example
        missed = opinion.missed
        if opinion.losses is None or missed or not opinion.is_agreed:
            missed = missed | self._refuse_coupled(opinion, tolerance)
        if missed and traced.is_sharded:
            raise UnsupportedModelError(without_fast_method(missed))
        if missed:
            self._step_down(opinion, missed, tolerance)
        self._structure = structure(batch)
        return checked

    def _apart(self, batch: Batch, pair: list[int], alone: Tensor) -> LossesApart:
        """The losses of a pair alone, and of a few examples in halves, any two of them apart once.

        The loss of an example may depend on few others: those of its class, its neighbours.
        """
        groups, losses = [[row] for row in pair], [alone]
        if not self._traced.is_sharded:
            drawn = torch.randperm(length(batch), generator=self._random)[:COMPARED].tolist()
            for half in _halves(drawn):
                try:
                    own = self._traced.losses_of(part(batch, torch.tensor(half)))
                except Exception as error:  # the pass itself finds the batch size that fits
                    if not is_out_of_memory(error):
                        raise
                    break
                groups.append(half)
                losses.append(own.to(alone))
        return LossesApart(groups, torch.cat(losses))

    def _compare_losses(self, pair: Batch, rows: list[int], tolerance: float) -> LossesApart | None:
        traced = self._traced
        singles = [part(pair, slice(row, row + 1)) for row in range(length(pair))]
        losses = torch.tensor([traced.loss_of(single) for single in singles], dtype=torch.float64)
        if not bool(torch.isfinite(losses).all()):
            return None
        refuse_unrepeatable(traced, pair, losses, tolerance)
        return LossesApart([[row] for row in rows], losses)

    def _pairs(self, examples: int) -> list[list[int]]:
        if examples == 1:
            return [[0, 0]]
        pairs = []
        for _ in range(min(_OPINIONS, examples * (examples - 1) // 2)):
            first = int(torch.randint(examples, (), generator=self._random))
            step = int(torch.randint(1, examples, (), generator=self._random))
            pairs.append([first, (first + step) % examples])
        return pairs

    def _opinion(self, pair: Batch, tolerance: float) -> _Opinion:
        """Compare the fast method on a pair of examples with autograd on each alone."""
        traced = self._traced
        apart = alone(traced.model, traced.compute, pair, traced.parameters, _FACTORS)
        is_finite = all(each_says(apart.is_finite)) if traced.is_sharded else apart.is_finite
        if not is_finite:
            return _Opinion(pair, apart, None, {}, is_agreed=False, is_finite=False)
        fast = self._methods.by(GradientMethod.FAST)
        if not fast:
            return _Opinion(pair, apart, None, {}, is_agreed=True)
        missed: dict[str, str] = {}
        losses: list[Tensor] = []

        def run(visit: Visit) -> None:
            result = self._passes.on_trial(pair, fast, visit)
            missed.update(result.missed)
            losses.append(result.losses)
            self._methods.explain(result.reasons)

        try:
            found = weighted_sum(run, fast, _FACTORS)
        except TracInError:
            raise
        except Exception as error:  # a model that cannot be watched: every exact method is open
            if is_out_of_memory(error):
                raise
            reasons = dict.fromkeys(fast, f"cannot be watched: {first_line(error)}")
            if traced.is_sharded:
                raise UnsupportedModelError(without_fast_method(reasons)) from error
            return _Opinion(pair, apart, None, reasons, is_agreed=True)
        if traced.is_sharded:
            for found_by_rank in each_says(dict(missed)):
                missed |= found_by_rank
        wanted = {name: apart.gradients[name] for name in fast if name not in missed}
        gaps = differences(found, wanted, tolerance, traced.parameters)
        is_agreed = not gaps and not are_apart(losses[0], apart.losses, tolerance)
        if traced.is_sharded:
            is_agreed = all(each_says(is_agreed))
        return _Opinion(pair, apart, losses[0], missed, is_agreed, found, gaps)

    def _refuse_coupled(self, opinion: _Opinion, tolerance: float) -> dict[str, str]:
        """Rule out that examples depend on each other; the parameters that still differ, and why.

        Raises:
            CoupledExamplesError: They do.
        """
        traced = self._traced
        together = refuse_coupled(
            traced,
            opinion.pair,
            traced.parameters,
            _FACTORS,
            opinion.apart,
            tolerance,
        )
        wanted = {name: together[name] for name in opinion.gaps}
        gaps = differences(opinion.found, wanted, tolerance, traced.parameters)
        if gaps:
            parameters = {name: traced.parameters[name] for name in gaps}
            beyond = beyond_rounding(
                traced,
                opinion.pair,
                parameters,
                _FACTORS,
                opinion.found,
                together,
            )
            gaps = {name: gap for name, gap in gaps.items() if name in beyond}
        return {name: _GAP.format(gap) for name, gap in gaps.items()}

    def _step_down(self, opinion: _Opinion, missed: Mapping[str, str], tolerance: float) -> None:
        """Settle a slower method for the parameters that the fast one missed."""
        traced = self._traced
        parameters = {name: traced.parameters[name] for name in missed}
        wanted = {name: opinion.apart.gradients[name] for name in missed}

        def run(visit: Visit) -> None:
            gradients = vmap_gradients(traced.model, traced.compute, opinion.pair, parameters)
            for name, rows in gradients.items():
                visit(name, Dense(rows), 0)

        failed: Mapping[str, object]
        try:
            failed = differences(
                weighted_sum(run, parameters, _FACTORS), wanted, tolerance, parameters
            )
            why = "vmap and autograd differ"
        except Exception as error:  # torch raises all kinds here; backward passes are exact as well
            if is_out_of_memory(error):
                raise
            failed, why = parameters, f"vmap: {first_line(error)}"
        self._methods.step_down(
            {
                name: Covered(GradientMethod.LOOP, f"{reason}; {why}")
                if name in failed
                else Covered(GradientMethod.VMAP, reason)
                for name, reason in missed.items()
            }
        )


def _halves(rows: list[int]) -> list[list[int]]:
    """Halves of some rows, by each bit of their places: any two rows are apart in one of them."""
    return [
        [row for at, row in enumerate(rows) if at >> bit & 1 == value]
        for bit in range((len(rows) - 1).bit_length())
        for value in (0, 1)
    ]
