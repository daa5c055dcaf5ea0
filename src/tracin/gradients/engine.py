"""Per-example gradients of any model, by the fast method where it holds and a slower elsewhere."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch
from tracin.data.batches import Single
from tracin.errors import TracInError
from tracin.gradients.auditor import Auditor
from tracin.gradients.batch_pass import BatchPass, NotSettledError
from tracin.gradients.compute import Compute
from tracin.gradients.coverage import Covered, GradientMethod
from tracin.gradients.directions import Direction, ForwardMode
from tracin.gradients.fast import Pass
from tracin.gradients.forms import PerExampleGradient, in_real_numbers
from tracin.gradients.inspection import Inspection, inspected
from tracin.gradients.kept_shapes import KeptShapes
from tracin.gradients.method_table import MethodTable
from tracin.gradients.pair_check import LossesApart, PairCheck
from tracin.gradients.repeatable import Draws
from tracin.gradients.schedule import Schedule
from tracin.gradients.traced_model import TracedModel
from tracin.gradients.visit import Visit
from tracin.out_of_memory import is_out_of_memory
from tracin.random_state import RandomState

# Seeds the audits' factors and the pairs: the same run draws the same ones.
_SEED = 20200219

# Batches without an example dimension: a graph, an image with its boxes.
_SINGLE = Covered(
    GradientMethod.LOOP, "examples come one at a time: their batches have no example dimension"
)


@final
class Gradients:
    """The per-example gradients of chosen parameters, batch by batch.

    Call `check` with a batch, or `check_in_pass` with the first one of a pass, at the weights in
    place, before `visit`. Every pass is audited while it runs (`schedule.py` chooses the batches):
    where the gradients handed on are not autograd's, their parameters step down to a slower
    method, and keep it.

    A sharded model (see `tracin.sharding`) has the fast method alone. Its ranks call everything
    together, `check` with the same batch; what one rank finds, it tells the others after the pass.

    Args:
        model: The model, in eval mode whenever gradients are computed.
        compute: The per-example loss.
        parameters: Those to trace, by name.
        methods: Where each parameter's method is kept; give the same mapping to the next
            `Gradients` to keep what earlier passes settled.
        shapes: What is known of the model's calls, to be kept likewise.
    """

    def __init__(
        self,
        model: Module,
        compute: Compute,
        parameters: Mapping[str, Tensor],
        methods: dict[str, Covered] | None = None,
        shapes: KeptShapes | None = None,
    ) -> None:
        self.methods: dict[str, Covered] = {} if methods is None else methods
        self._traced = TracedModel(model, compute, parameters)
        self.model = model
        self.compute = self._traced.compute
        self.parameters = self._traced.parameters
        self.is_sharded = self._traced.is_sharded
        random = torch.Generator().manual_seed(_SEED)
        self._table = MethodTable(self.parameters, self.methods)
        kept = KeptShapes() if shapes is None or self.is_sharded else shapes
        self._passes = BatchPass(self._traced, self._table, kept)
        self._pairs = PairCheck(self._traced, self._table, self._passes, random)
        self._auditor = Auditor(self._traced, self._table, self._passes, self._pairs, random)
        self._draws = Draws(self._traced)
        self._forward_mode = ForwardMode(self._traced)
        self._inspection: Inspection | None = None
        self._checked: LossesApart | None = None

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Let the traced parameters, and no others, require grad; restore the flags on leaving."""
        with self._traced.requiring(self.parameters):
            yield

    def inspect(self, batch: Batch) -> float:
        """Look at the loss of one example, once; the tolerance that its precision asks for.

        Raises:
            LossError: The loss is no differentiable value per example.
            CoupledExamplesError: BatchNorm runs in train mode.
        """
        if self._inspection is None:
            self._inspection = inspected(self._traced, batch)
        return self._inspection.tolerance

    @property
    def tolerance(self) -> float:
        """What rounding explains, relative to a loss or a gradient; known after `inspect`."""
        if self._inspection is None:
            raise RuntimeError("visit before check; a bug in tracin")
        return self._inspection.tolerance

    @property
    def held(self) -> int:
        """Bytes of activations that an example keeps for the backward pass; 0 before `inspect`."""
        return 0 if self._inspection is None else self._inspection.held

    def loss_of(self, single: Batch) -> float:
        """The loss of one example in a batch of its own."""
        return self._traced.loss_of(single)

    def slow_names(self) -> list[str]:
        """The parameters that the fast method does not cover."""
        return list(self._table.by(GradientMethod.VMAP, GradientMethod.LOOP))

    def check(self, batch: Batch) -> None:
        """Settle each parameter's method on pairs of examples, against autograd on each alone.

        Args:
            batch: Examples first.

        Raises:
            LossError: The loss is no differentiable value per example, draws random numbers,
                changes state, or depends on trained tensors outside the model.
            CoupledExamplesError: Examples are not independent of their batch.
            UnsupportedModelError: The model is sharded, and the fast method misses a parameter.
        """
        self._checked = self._checked_by(self._pairs.check, batch)

    def check_in_pass(self, batch: Batch, *, is_first: bool = True) -> None:
        """As `check`, where a pass follows whose first batch is audited: that tells as much.

        Args:
            batch: Examples first.
            is_first: Whether it is the batch that `begin` calls the checked one. Queries of another
                structure, or of another loss, are checked between that batch and its pass.

        Raises:
            LossError: As from `check`; also later, from `visit`, and so the others.
            CoupledExamplesError: As above.
            UnsupportedModelError: As above.
        """
        checked = self._checked_by(partial(self._pairs.leave_to_audit, is_first=is_first), batch)
        if is_first:
            self._checked = checked

    def _checked_by(
        self, check: Callable[[Batch, float], LossesApart | None], batch: Batch
    ) -> LossesApart | None:
        self._traced.find_whole()
        tolerance = self.inspect(batch)
        if isinstance(batch, Single):
            self._table.begin_with(_SINGLE)
            return None
        if self._inspection is not None and self._inspection.draws:
            check = self._pairs.check  # compares to the last digit
        return check(batch, tolerance)

    def audited_whole(self, examples: int) -> int:
        """The most examples for the first batch of a pass, so that all of it can be audited.

        Args:
            examples: How many examples the pass has.
        """
        return Schedule(examples, self.held).first

    def begin(self, examples: int, *, is_checked: bool = False) -> int:
        """Begin a pass: its batches are counted, for the audit.

        Args:
            examples: How many examples the pass has.
            is_checked: Whether the first batch is the one that `check` saw.

        Returns:
            The most examples that the first batch should have, if all of it is audited.
        """
        return self._auditor.begin(examples, self.held, self._checked if is_checked else None)

    def visit(
        self,
        batch: Batch,
        visit: Visit,
        *,
        directions: Sequence[Direction] = (),
        is_last: bool = False,
    ) -> Pass:
        """Hand every parameter's gradients on a batch to `visit`, as soon as each is known.

        Args:
            batch: Examples first.
            visit: Called as visit(name, gradients, row): the first of these examples is that row.
            directions: Numbers for each of the parameters in `slow_names`. Forward mode multiplies
                the gradients with them where it can; then `visit` gets no such parameter, and the
                result has the products.
            is_last: Whether this is the last batch of the pass, which is always audited.

        Raises:
            SteppedDownError: The audit found parameters whose gradients are not autograd's. They
                have a slower method now: drop what the pass gave so far, and begin it again.
            CoupledExamplesError: Examples are not independent of their batch.
            LossError: The loss draws random numbers, or changes state.
            LateError: The model is sharded, and the fast method cannot cover this batch; the pass
                was finished, so that the ranks are in step.
        """
        scores = self._forward_mode.scores(batch, directions) if directions else None
        leave_out = () if scores is None else tuple(directions[0])
        visit = _in_real_numbers(visit, self.parameters)
        self._table.is_settled = self._pairs.is_settled(batch)
        try:
            audit = self._auditor.next(batch, self.tolerance, leave_out, is_last=is_last)
            before = RandomState.now()
            taking = audit.taking(visit) if audit else visit
            result = self._run(batch, taking, leave_out)
            self._draws.refuse_since(before, batch, is_audited=audit is not None)
            audit = self._auditor.after(batch, result, audit, leave_out)
            if audit is not None:
                self._auditor.judge(batch, result, audit, leave_out)
                if scores is not None:
                    self._forward_mode.audit(scores, directions, audit.reference, self.tolerance)
        except Exception:
            self._auditor.take_back()  # a batch that is tried again is audited as it was
            raise
        return replace(result, scores=scores)

    def _run(self, batch: Batch, visit: Visit, leave_out: Collection[str]) -> Pass:
        """A pass; where its methods are not settled and it fails, pairs say what is to be done."""
        try:
            return self._passes.run(batch, visit, leave_out)
        except NotSettledError as error:
            self._auditor.settle(batch, error.missed)
            raise
        except Exception as error:
            is_ours = isinstance(error, TracInError) or is_out_of_memory(error)
            if not is_ours and not self._table.is_settled:
                self._auditor.settle(batch, {})  # a model that cannot be watched
            raise

    def again(self, batch: Batch, visit: Visit) -> Pass:
        """Hand the gradients of a batch that was visited on once more, without another audit."""
        return self._passes.run(batch, _in_real_numbers(visit, self.parameters))


def _in_real_numbers(visit: Visit, parameters: Mapping[str, Tensor]) -> Visit:
    """The same visitor; it gets a complex parameter's gradients as real numbers."""
    if not any(parameter.is_complex() for parameter in parameters.values()):
        return visit

    def visit_real(name: str, form: PerExampleGradient, row: int) -> None:
        visit(name, in_real_numbers(form) if parameters[name].is_complex() else form, row)

    return visit_real
