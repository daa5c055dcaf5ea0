"""The check of the gradient methods on pairs of examples.

The fast method on two examples must give what autograd gives on each alone. The audit of the first
batch compares the same; where a pass follows, a pair is looked at only if that finds something.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, isqrt
from typing import Any, final

import torch
from torch import Tensor

from tracin.data import Batch, length, part
from tracin.data.batches import structure
from tracin.errors import TracInError, UnsupportedModelError
from tracin.gradients.batch_pass import BatchPass
from tracin.gradients.coverage import Covered, GradientMethod
from tracin.gradients.distances import lengths_by_name, whole_lengths
from tracin.gradients.fast import Pass
from tracin.gradients.forms import Dense
from tracin.gradients.method_table import MethodTable
from tracin.gradients.reference import weighted_gradients
from tracin.gradients.remainder import Remainder
from tracin.gradients.repeatable import refuse_unrepeatable
from tracin.gradients.schedule import FEW, GROUPS
from tracin.gradients.second_opinion import beyond_rounding
from tracin.gradients.self_check import (
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

# Different factors for the two examples of a pair, so that mixing them up changes the sum; powers
# of two, so that even a gradient that is rounding alone is the same whether the factor is put on
# before the backward pass or after it.
_FACTORS = torch.tensor([0.5, -1.0])

# How many pairs are compared for a second opinion, at most.
_OPINIONS = 16

# How many examples are compared in smaller batches at most.
COMPARED = 16

_Structure = list[tuple[str, Any]]

_BY_RULES = Covered(GradientMethod.FAST, "rules")

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
    alone: Tensor  # the losses of each in a batch of its own: [examples]
    sizes: Mapping[str, float]  # how long autograd's sums of factor x gradient are
    missed: Mapping[str, str]  # the parameters that the fast method cannot cover, and why
    is_agreed: bool  # whether a second opinion cannot change anything
    gaps: Mapping[str, float] = field(default_factory=dict)  # how far its sums are from autograd's
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
        self._known: list[_Structure] = []  # of batches that were checked, at any weights
        self._due: list[_Structure] = []  # of batches whose audit has to tell, at these weights
        self._is_shown = False

    @property
    def is_shown(self) -> bool:
        """Whether audits of all of a few examples have told what was left to them."""
        return self._is_shown and not self._due

    def is_due(self, batch: Batch) -> bool:
        """Whether the audit of a batch like this one has to tell."""
        return bool(self._due) and structure(batch) in self._due

    def is_settled(self, batch: Batch) -> bool:
        """Whether the methods of a batch like this one are known, at any weights."""
        return not self.is_due(batch) or structure(batch) in self._known

    def leave_to_audit(
        self, batch: Batch, tolerance: float, *, is_first: bool = True
    ) -> LossesApart | None:
        """Leave the methods to the audit of the first batch, which is of all its examples.

        Where that finds anything, or the fast method fails, `check` says what is to be done.

        Args:
            batch: What the pass begins with.
            tolerance: What rounding explains.
            is_first: Whether a pass begins with this very batch, and not with another one like it.

        Returns:
            Losses in smaller batches, for the audit; None where it takes each example alone, or
            where losses are not finite.

        Raises:
            CoupledExamplesError: As from `check`, which is made at once where an audit cannot tell.
            LossError: As above.
            UnsupportedModelError: As above.
        """
        if length(batch) < 2 or self._traced.is_sharded:
            return self.check(batch, tolerance)
        self._methods.begin_with(_BY_RULES)
        kind = structure(batch)
        others = [] if is_first else [each for each in self._due if each != kind]
        self._due = [*others, kind]
        self._is_shown = False
        if length(batch) <= GROUPS or not is_first:
            return None
        pair = self._pairs(length(batch))[0]
        alone = self._losses_alone(part(batch, pair))
        if not bool(torch.isfinite(alone).all()):
            return None
        return self._apart(batch, pair, alone, are_all=kind not in self._known)

    def settle(self, batch: Batch, result: Pass) -> None:
        """Note that an audit of all of a batch found nothing: the methods hold."""
        self._methods.explain(result.reasons)
        if length(batch) < 2:
            return  # one example shows nothing of others
        self._is_shown = length(batch) >= FEW
        self._note(structure(batch))

    def _note(self, kind: _Structure) -> None:
        """Batches like this need no check at these weights, and a shorter one at others."""
        self._due = [each for each in self._due if each != kind]
        if kind not in self._known:
            self._known.append(kind)

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
        self._methods.begin_with(_BY_RULES)
        kind = structure(batch)
        self._due = [each for each in self._due if each != kind]
        self._is_shown = False  # of other weights, perhaps
        pairs = self._pairs(length(batch))
        first = part(batch, pairs[0])
        if kind in self._known and not traced.is_sharded:
            # The methods are known, and the audit compares gradients.
            losses = self._losses_alone(first)
            if not bool(torch.isfinite(losses).all()):
                return None
            return self._apart(batch, pairs[0], losses, are_all=False)
        self._passes.forget_shapes()
        opinion = self._opinion(first, tolerance)
        checked = None
        if opinion.is_finite:
            checked = self._apart(batch, pairs[0], opinion.alone, are_all=True)
            refuse_unrepeatable(traced, first, opinion.alone, tolerance)
        for pair in pairs[1:]:
            if opinion.is_agreed:
                break
            opinion = self._opinion(part(batch, pair), tolerance)
        if not opinion.is_finite:
            return checked  # nothing can be compared; the pass itself will name the example
        missed = dict(opinion.missed)
        has_fast = bool(self._methods.by(GradientMethod.FAST))
        if not has_fast or missed or not opinion.is_agreed:
            missed |= self._refuse_coupled(opinion, tolerance)
        if missed and traced.is_sharded:
            raise UnsupportedModelError(without_fast_method(missed))
        if missed:
            self.step_down(opinion.pair, missed, tolerance)
        self._note(kind)
        return checked

    def _apart(self, batch: Batch, pair: list[int], alone: Tensor, *, are_all: bool) -> LossesApart:
        """The losses of a pair alone and, if all are, of a few examples, any two apart once.

        The loss of an example may depend on few others: those of its class, its neighbours. A batch
        of a few is audited one by one, which tells as much.
        """
        groups, losses = [[row] for row in pair], [alone]
        if are_all and not self._traced.is_sharded and length(batch) > GROUPS:
            drawn = torch.randperm(length(batch), generator=self._random)[:COMPARED].tolist()
            for line in _lines(drawn):
                try:
                    own = self._traced.losses_of(part(batch, torch.tensor(line)))
                except Exception as error:  # the pass itself finds the batch size that fits
                    if not is_out_of_memory(error):
                        raise
                    break
                groups.append(line)
                losses.append(own.to(alone))
        return LossesApart(groups, torch.cat(losses))

    def _losses_alone(self, pair: Batch) -> Tensor:
        singles = [part(pair, slice(row, row + 1)) for row in range(length(pair))]
        losses = [self._traced.loss_of(single) for single in singles]
        return torch.tensor(losses, dtype=torch.float64)

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
        parameters = traced.parameters
        gradients, losses = alone(traced.model, traced.compute, pair, parameters, _FACTORS)
        sizes = lengths_by_name(gradients)
        is_finite = all(map(isfinite, [*sizes.values(), *losses.tolist()]))
        is_finite = all(each_says(is_finite)) if traced.is_sharded else is_finite
        if not is_finite:
            return _Opinion(pair, losses, sizes, {}, is_agreed=False, is_finite=False)
        sizes = whole_lengths(sizes, parameters)
        fast = self._methods.by(GradientMethod.FAST)
        if not fast:
            return _Opinion(pair, losses, sizes, {}, is_agreed=True)
        remainder = Remainder(gradients, parameters)
        del gradients
        try:
            result = self._passes.on_trial(
                pair, fast, lambda name, form, row: remainder.take(name, form, _FACTORS)
            )
        except TracInError:
            raise
        except Exception as error:  # a model that cannot be watched: every exact method is open
            if is_out_of_memory(error):
                raise
            reasons = dict.fromkeys(fast, f"cannot be watched: {_why(error)}")
            if traced.is_sharded:
                raise UnsupportedModelError(without_fast_method(reasons)) from error
            return _Opinion(pair, losses, sizes, reasons, is_agreed=True)
        self._methods.explain(result.reasons)
        missed = dict(result.missed)
        if traced.is_sharded:
            for found_by_rank in each_says(dict(missed)):
                missed |= found_by_rank
        left_out = [name for name in parameters if name not in fast or name in missed]
        gaps = remainder.gaps(tolerance, left_out) or {}
        is_agreed = not gaps and not are_apart(result.losses, losses, tolerance)
        if traced.is_sharded:
            is_agreed = all(each_says(is_agreed))
        return _Opinion(pair, losses, sizes, missed, is_agreed, gaps)

    def _refuse_coupled(self, opinion: _Opinion, tolerance: float) -> dict[str, str]:
        """Rule out that examples depend on each other; the parameters that still differ, and why.

        Raises:
            CoupledExamplesError: They do.
        """
        traced, pair = self._traced, opinion.pair
        refuse_coupled(traced, pair, traced.parameters, _FACTORS, opinion.sizes, tolerance)
        if not opinion.gaps:
            return {}
        parameters = {name: traced.parameters[name] for name in opinion.gaps}
        together, _ = weighted_gradients(traced.model, traced.compute, pair, parameters, _FACTORS)
        fast = self._methods.by(GradientMethod.FAST)

        def run(visit: Visit) -> None:
            self._passes.on_trial(pair, fast, visit)

        found = weighted_sum(run, parameters, _FACTORS)
        gaps = differences(found, together, tolerance, parameters)
        if gaps:
            parameters = {name: parameters[name] for name in gaps}
            apart, _ = alone(traced.model, traced.compute, pair, parameters, _FACTORS)
            both = [together, apart]
            beyond = beyond_rounding(traced, pair, parameters, _FACTORS, found, both)
            gaps = {name: gap for name, gap in gaps.items() if name in beyond}
        return {name: _GAP.format(gap) for name, gap in gaps.items()}

    def step_down(self, pair: Batch, missed: Mapping[str, str], tolerance: float) -> None:
        """Settle a slower method for the parameters that the fast one missed.

        Args:
            pair: Two examples, or one in place of both.
            missed: The parameters, and why.
            tolerance: What rounding explains.
        """
        traced = self._traced
        parameters = {name: traced.parameters[name] for name in missed}

        def run(visit: Visit) -> None:
            gradients = vmap_gradients(traced.model, traced.compute, pair, parameters)
            for name, rows in gradients.items():
                visit(name, Dense(rows), 0)

        failed: Mapping[str, object]
        wanted, _ = alone(traced.model, traced.compute, pair, parameters, _FACTORS)
        try:
            found = weighted_sum(run, parameters, _FACTORS)
            failed = differences(found, wanted, tolerance, parameters)
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


def _why(error: Exception) -> str:
    if "torch.utils.checkpoint" in str(error):
        return (
            "activation checkpointing keeps other tensors the second time (debug=True, or code "
            "other than torch.utils.checkpoint); switch that off, or checkpointing itself, and "
            "take smaller batches"
        )
    return first_line(error)


def _lines(rows: list[int]) -> list[list[int]]:
    """The rows and the columns of a square that they fill: any two are apart in one direction.

    Halves by each bit of their places would be as many batches, and twice as many examples.
    """
    side = isqrt(len(rows) - 1) + 1
    across = [rows[start : start + side] for start in range(0, len(rows), side)]
    down = [rows[start::side] for start in range(side)]
    return [*across, *down]
