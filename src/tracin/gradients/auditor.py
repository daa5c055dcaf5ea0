"""Audits passes while they run, and steps down to slower methods where an audit fails."""

from collections.abc import Collection, Mapping
from typing import final

import torch

from tracin.data import Batch, length, part
from tracin.data.batches import Single
from tracin.gradients.audit import Audit, Reference
from tracin.gradients.batch_pass import BatchPass
from tracin.gradients.fast import Pass
from tracin.gradients.method_table import MethodTable
from tracin.gradients.pair_check import LossesApart, PairCheck
from tracin.gradients.repeatable import refuse_unrepeatable
from tracin.gradients.schedule import FEW, GROUPS, Schedule
from tracin.gradients.second_opinion import beyond_rounding
from tracin.gradients.self_check import are_apart, refuse_other_losses
from tracin.gradients.settling import slower_methods
from tracin.gradients.stepping_down import LearnAgainError, SteppedDownError
from tracin.gradients.traced_model import TracedModel


@final
class Auditor:
    """Chooses the batches of a pass to audit, and compares their gradients with autograd's.

    Args:
        traced: The model, its loss and its parameters.
        methods: Where the methods are kept.
        passes: Repeats a pass over a batch whose audit failed.
        pairs: Says what is to be done where the first audit finds something.
        random: Draws factors and orders.
    """

    def __init__(
        self,
        traced: TracedModel,
        methods: MethodTable,
        passes: BatchPass,
        pairs: PairCheck,
        random: torch.Generator,
    ) -> None:
        self._traced = traced
        self._methods = methods
        self._passes = passes
        self._pairs = pairs
        self._random = random
        self._schedule = Schedule(0, 0)
        self._shown: set[int] = set()  # ways through the model, of whole batches since a check
        self._tolerance = 0.0
        self._apart: LossesApart | None = None

    def begin(self, examples: int, held: int, losses: LossesApart | None) -> int:
        """Begin a pass.

        Args:
            examples: How many it has.
            held: Bytes of activations that an example keeps for the backward pass.
            losses: Losses of examples of the first batch in smaller batches.

        Returns:
            The most examples that the first batch should have, if all of it is audited.
        """
        if not self._pairs.is_shown:
            self._shown.clear()
        self._schedule = Schedule(examples, held, self._shown)
        self._apart = losses
        return self._schedule.first

    def next(
        self, batch: Batch, tolerance: float, leave_out: Collection[str], *, is_last: bool
    ) -> Audit | None:
        """The audit of the next batch; None if it is not audited, as no batch is of sharded models.

        Args:
            batch: The batch.
            tolerance: What rounding explains.
            leave_out: Parameters that the pass skips; who multiplies them compares by itself.
            is_last: Whether it is the last of the pass.
        """
        self._tolerance = tolerance
        if self._traced.is_sharded:
            return None
        window = self._schedule.next(length(batch), is_last)
        if window is None:
            return None
        if len(window) == length(batch):
            return self._audit(batch, self._groups(window), tolerance, leave_out)
        return self._audit(batch, [self._shuffled(window)], tolerance, leave_out)

    def after(
        self, batch: Batch, result: Pass, audit: Audit | None, leave_out: Collection[str]
    ) -> Audit | None:
        """The audit of a batch: made now, if its pass took another way through the model.

        Args:
            batch: The batch.
            result: What its pass gave.
            audit: The audit that took its gradients, if there was one.
            leave_out: Parameters that the pass skipped.
        """
        is_whole = audit is not None and len(audit.reference.window) == length(batch)
        if not self._schedule.is_new(result.path, is_audited=is_whole) or self._traced.is_sharded:
            return audit
        groups = self._groups(range(length(batch)))
        audit = self._audit(batch, groups, self._tolerance, leave_out)
        self._passes.run(batch, audit.take, leave_out)
        return audit

    def judge(self, batch: Batch, result: Pass, audit: Audit, leave_out: Collection[str]) -> None:
        """Accept a pass over a batch, or step down.

        Args:
            batch: The batch.
            result: What its pass gave.
            audit: The audit that took its gradients.
            leave_out: Parameters that the pass skipped.

        Raises:
            SteppedDownError: Some gradients are not autograd's; their parameters have slower
                methods now.
            CoupledExamplesError: Examples depend on each other.
            LossError: The loss draws random numbers, or changes state.
        """
        traced, reference = self._traced, audit.reference
        failed = audit.gaps(leave_out)
        if failed is None:
            return  # nothing can be compared; whoever takes the losses will name the example
        groups, apart = reference.groups, reference.losses
        if self._apart is not None:
            groups = [*groups, *self._apart.groups]
            apart = torch.cat([apart, self._apart.losses.to(apart)])
            self._apart = None
        together = result.losses[[row for group in groups for row in group]]
        if not bool(torch.isfinite(together.sum())):
            return
        is_apart = are_apart(together, apart.to(together), audit.tolerance)
        if failed or is_apart:
            if not self._methods.is_settled:
                self.settle(batch, {})
        elif self._pairs.is_due(batch) and len(reference.window) == length(batch):
            self._pairs.settle(batch, result)
            if result.path is not None and length(batch) >= FEW:
                self._shown.add(result.path)
        if is_apart:
            self._refuse_changing(batch, audit.tolerance)
            refuse_other_losses(traced, batch, groups, together, apart, audit.tolerance)
        if failed:
            # A ReLU whose input is zero but for rounding may switch with the order of a batch or
            # its size: compare with the same batch in the same order.
            rows = list(range(length(batch)))
            audit = self._audit(batch, [rows], audit.tolerance, failed)
            self._passes.run(batch, audit.take, leave_out)
            found = audit.gaps(leave_out) or {}
            failed = {name: gap for name, gap in found.items() if name in failed}
        if failed:
            beyond = beyond_rounding(
                traced,
                batch,
                {name: traced.parameters[name] for name in failed},
                audit.reference.factors,
                audit.found,
                [audit.reference.gradients],
            )
            failed = {name: gap for name, gap in failed.items() if name in beyond}
        if failed:
            changed = slower_methods(
                self._traced, self._methods, batch, failed, audit.tolerance, self._random
            )
            if changed:
                self._methods.step_down(changed)
                raise SteppedDownError(changed)

    def settle(self, batch: Batch, missed: Mapping[str, str]) -> None:
        """Check pairs of a batch on which a pass of methods that are not settled failed.

        Args:
            batch: The batch.
            missed: Parameters that the fast method missed, and why.

        Raises:
            SteppedDownError: Methods have changed, or what was known of the model's calls may no
                longer hold: begin again.
            CoupledExamplesError: Examples depend on each other.
            LossError: The loss draws random numbers, or changes state.
        """
        if self._passes.forget_shapes():
            raise LearnAgainError
        before = dict(self._methods.entries)
        self._pairs.check(batch, self._tolerance)
        changed = {
            name for name in self._traced.parameters if before[name].method != self._methods[name]
        }
        if missed and not changed:
            # No pair showed it, and the next pass over this batch would miss it again.
            self._pairs.step_down(part(batch, slice(0, 2)), missed, self._tolerance)
            changed = set(missed)
        if changed:
            raise SteppedDownError(changed)

    def take_back(self) -> None:
        """Forget the last batch: its pass failed, and the next one is in its place."""
        self._schedule.take_back()

    def _refuse_changing(self, batch: Batch, tolerance: float) -> None:
        """Losses also differ from pass to pass where they are random or change with a state."""
        if isinstance(batch, Single) or self._traced.is_sharded:
            return
        single = part(batch, [0])
        losses = torch.tensor([self._traced.loss_of(single)], dtype=torch.float64)
        if bool(torch.isfinite(losses).all()):
            refuse_unrepeatable(self._traced, single, losses, tolerance)

    def _groups(self, window: range) -> list[list[int]]:
        """A few groups, in which a loss differs that depends on which examples its batch has."""
        rows = self._shuffled(window)
        count = min(GROUPS, len(rows))
        return [rows[at::count] for at in range(count)]

    def _shuffled(self, window: range) -> list[int]:
        order = torch.randperm(len(window), generator=self._random).tolist()
        return [window[row] for row in order]

    def _audit(
        self,
        batch: Batch,
        groups: list[list[int]],
        tolerance: float,
        kept: Collection[str],
    ) -> Audit:
        traced = self._traced
        reference = Reference.of(
            traced.model, traced.compute, batch, traced.parameters, groups, self._random
        )
        return Audit(reference, tolerance, self._random, kept)
