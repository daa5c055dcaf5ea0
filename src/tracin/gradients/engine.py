"""Per-example gradients of any model: the fast way where it holds, an exact one for the rest."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, content_of, copied, length, part
from tracin.data.batches import Single, structure
from tracin.errors import DataError, LossError, TracInError, UnsupportedModelError
from tracin.gradients.audit import Audit, Reference, audit_factors
from tracin.gradients.coverage import Covered, GradientMethod
from tracin.gradients.fast import Compute, Pass, checked_losses, fast_pass, learn
from tracin.gradients.forms import PerExampleGradient, in_real_numbers
from tracin.gradients.forward_mode import jvp_scores
from tracin.gradients.graph import leaves_of, refuse_foreign
from tracin.gradients.held import held_bytes
from tracin.gradients.layouts import ShapeProbe
from tracin.gradients.ledger import Visit
from tracin.gradients.loop import loop_pass
from tracin.gradients.reference import weighted_gradients
from tracin.gradients.refusals import Guard
from tracin.gradients.repeatable import refuse_unrepeatable
from tracin.gradients.schedule import Schedule
from tracin.gradients.self_check import (
    Alone,
    alone,
    are_apart,
    differences,
    refuse_coupled,
    refuse_other_losses,
    tolerance_of,
    weighted_sum,
)
from tracin.gradients.vmapped import vmap_pass
from tracin.gradients.watch import UnlikeTrialError
from tracin.gradients.writing import WritesError, shared, storages, versions
from tracin.out_of_memory import is_out_of_memory
from tracin.sharding import each_says, is_sharded, rest, whole

T = TypeVar("T")

VisitRows = Callable[
    [str, PerExampleGradient, int], None
]  # name, gradients, the first example's row in the batch

# Unlike factors for the two examples of a trial, so that their places cannot be mixed up unseen.
_FACTORS = torch.tensor([0.7, -1.3])

# How many pairs of examples are asked for a second opinion, at most.
_OPINIONS = 16

_GAP = "its rules and autograd differ by {:.1e}"

# Numbers in one block of written-out fallback gradients: 128 MB in float32.
_FALLBACK_BLOCK = 1 << 25

# Of the audits' random factors and pairs: the same run makes the same ones.
_SEED = 20200219

_log = logging.getLogger(__name__)


@final
class Gradients:
    """The per-example gradients of chosen parameters, batch by batch.

    `check` must have seen the first batch at the weights in place before `visit` is called. Every
    pass is audited while it runs (`schedule.py` says which batches): where the gradients handed on
    are not what autograd says, their parameters step down to a slower way, and stay there.

    A sharded model (see `tracin.sharding`) takes the fast way or none. Its ranks call everything
    together, `check` with the same batch; what a rank alone finds, it says after the pass.

    Args:
        model: The model, in eval mode whenever gradients are asked for.
        compute: The per-example loss.
        parameters: Those to trace, by name.
        ways: Where the way of each parameter is kept; give the same one to remember what earlier
            passes found.
    """

    def __init__(
        self,
        model: Module,
        compute: Compute,
        parameters: Mapping[str, Tensor],
        ways: dict[str, Covered] | None = None,
    ) -> None:
        self.model = model
        self.is_sharded = is_sharded(model)
        self._on_given = _from_rest(compute) if self.is_sharded else compute
        self.compute = _on_copies(self._on_given)
        self._writes: bool | None = None  # whether the model writes into its batch, once known
        self.parameters = _at_rest(model, parameters) if self.is_sharded else dict(parameters)
        # What forward passes use in the parameters' stead.
        self._within: Mapping[str, Tensor] = self.parameters
        self.ways: dict[str, Covered] = {} if ways is None else ways
        self._trial: ShapeProbe | None = None
        self._tolerance: float | None = None
        self._checked: tuple[list[int], Tensor] | None = None  # rows, and their losses alone
        self._alone: tuple[list[int], Tensor] | None = None  # the same, of the batch to come
        self._structure: list[tuple[str, Any]] | None = None  # of batches whose ways are known
        self._has_forward_mode = True
        self._held = 0
        self._schedule = Schedule(0, 0)
        self._random = torch.Generator().manual_seed(_SEED)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Have the chosen parameters, and no others, require grad; put back what was on leaving."""
        with self._requiring(self.parameters):
            yield

    @contextmanager
    def _requiring(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        if self.is_sharded:
            rest(self.model)  # whole ones take their flags when they are made whole
        chosen = {id(parameter) for parameter in parameters.values()}
        others = [p for p in self.model.parameters() if p.requires_grad != (id(p) in chosen)]
        try:
            for parameter in others:
                parameter.requires_grad_(id(parameter) in chosen)
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(id(parameter) not in chosen)

    def check(self, batch: Batch) -> None:
        """Settle each parameter's way on two examples of `batch`, against autograd on each alone.

        Where they disagree, other pairs are asked for a second opinion: a ReLU whose input is zero
        but for rounding may switch with the batch size.

        Raises:
            LossError: The loss is no differentiable value per example, draws random numbers,
                changes state, or depends on trained tensors outside the model.
            CoupledExamplesError: Examples are not independent of their batch.
            UnsupportedModelError: The model is sharded, and a parameter has no fast way.
        """
        if self.is_sharded:
            found = whole(self.model)
            self._within = {name: found[name] for name in self.parameters}
        tolerance = self.inspect(batch)
        if isinstance(batch, Single):
            for name in self.parameters:
                self.ways.setdefault(name, _ALONE)
            self._checked = None
            return
        for name in self.parameters:
            self.ways.setdefault(name, Covered(GradientMethod.FAST, "rules"))
        pairs = self._pairs(length(batch))
        if structure(batch) == self._structure and not self.is_sharded:
            self._look_again(part(batch, pairs[0]), pairs[0])
            return
        opinion = self._opinion(part(batch, pairs[0]), tolerance)
        self._checked = (pairs[0], opinion.apart.losses) if opinion.is_finite else None
        if opinion.is_finite:
            refuse_unrepeatable(
                self.model, self.compute, opinion.trial, opinion.apart.losses, tolerance
            )
        for pair in pairs[1:]:
            if opinion.is_agreed:
                break
            opinion = self._opinion(part(batch, pair), tolerance)
        if not opinion.is_finite:
            return  # nothing can be compared; the pass itself will name the example
        missed = opinion.missed
        if opinion.losses is None or missed or not opinion.is_agreed:
            together = refuse_coupled(
                self.model,
                self.compute,
                opinion.trial,
                self.parameters,
                _FACTORS,
                opinion.apart,
                tolerance,
            )
            wanted = {name: together[name] for name in opinion.gaps}
            gaps = differences(opinion.found, wanted, tolerance, self.parameters)
            missed = missed | {name: _GAP.format(gap) for name, gap in gaps.items()}
        if missed and self.is_sharded:
            raise UnsupportedModelError(_no_way(missed))
        if missed:
            self._step_down(opinion, missed, tolerance)
        self._structure = structure(batch)

    def _look_again(self, trial: Batch, rows: list[int]) -> None:
        """At other weights losses alone are compared: the ways are known, and gradients audited."""
        singles = [part(trial, slice(row, row + 1)) for row in range(length(trial))]
        losses = torch.tensor([self.loss_of(single) for single in singles], dtype=torch.float64)
        self._checked = None
        if bool(torch.isfinite(losses).all()):
            refuse_unrepeatable(self.model, self.compute, trial, losses, self.tolerance)
            self._checked = rows, losses

    def _pairs(self, examples: int) -> list[list[int]]:
        """Pairs of rows drawn from the whole batch; ranks of a sharded model draw the same."""
        if examples == 1:
            return [[0, 0]]
        pairs = []
        for _ in range(min(_OPINIONS, examples * (examples - 1) // 2)):
            first = int(torch.randint(examples, (), generator=self._random))
            step = int(torch.randint(1, examples, (), generator=self._random))
            pairs.append([first, (first + step) % examples])
        return pairs

    def inspect(self, trial: Batch) -> float:
        """Look at one loss by itself; returns the tolerance that its precision asks for.

        Raises:
            LossError: The loss is no differentiable value per example.
            CoupledExamplesError: BatchNorm runs in train mode.
        """
        if self._tolerance is None:
            with torch.enable_grad(), Guard():
                loss = checked_losses(self.compute(self.model, part(trial, [0])), 1)
            if not loss.requires_grad:
                raise LossError(
                    "The losses do not depend on any traced parameter through autograd. Was the "
                    "loss computed under torch.no_grad(), or from detached outputs?"
                )
            if not self.is_sharded:
                self._refuse_foreign(trial, leaves_of(loss))
            self._tolerance = tolerance_of(self.parameters, loss)
            self._held = held_bytes(self.model, self.compute, part(trial, [0]))
        return self._tolerance

    def _refuse_foreign(self, trial: Batch, leaves: Sequence[Tensor]) -> None:
        """Tell trained tensors outside the model by their being there in two passes."""
        with torch.enable_grad():
            again = leaves_of(checked_losses(self.compute(self.model, part(trial, [0])), 1))
        refuse_foreign(again, self.model.parameters(), self.compute, {id(leaf) for leaf in leaves})

    def begin(self, examples: int, *, is_checked: bool = False) -> int:
        """Begin a pass over so many examples: its batches are counted, for the audit.

        Args:
            examples: How many.
            is_checked: Whether the first batch is the one that `check` saw.

        Returns:
            The most examples that the first batch should have, for all of it is audited.
        """
        self._schedule = Schedule(examples, self._held)
        self._alone = self._checked if is_checked else None
        return self._schedule.first

    def visit(
        self,
        batch: Batch,
        visit: VisitRows,
        *,
        leave_out: Sequence[str] = (),
        is_last: bool = False,
    ) -> Pass:
        """Hand every parameter's gradients on a batch to `visit`, each as soon as it is known.

        Args:
            batch: Examples first.
            visit: Called as visit(name, form, row): the form's first example is that row.
            leave_out: Parameters that are not wanted, of those that have no fast way.
            is_last: Whether this is the last batch of the pass; it is audited in any case.

        Raises:
            SteppedDownError: The audit found parameters whose gradients are not what autograd
                says. They take a slower way now: what the pass gave so far must be dropped, and
                the pass be done again.
            CoupledExamplesError: Examples are not independent of their batch.
            LossError: The loss draws random numbers, or changes state.
            LateError: The model is sharded, and this batch has no fast way; the pass was finished,
                so that the ranks are in step.
        """
        visit = _in_real_numbers(visit, self.parameters)
        window = None if self.is_sharded else self._schedule.next(length(batch), is_last)
        if window is None:
            return self._pass(batch, visit, leave_out)
        audit = self._audit(batch, window)

        def seen(name: str, form: PerExampleGradient, row: int) -> None:
            audit.take(name, form, row)
            visit(name, form, row)

        result = self._pass(batch, seen, leave_out)
        self._compare(batch, result, audit, frozenset(leave_out))
        return replace(result, reference=audit.reference)

    def _pass(self, batch: Batch, visit: VisitRows, leave_out: Sequence[str]) -> Pass:
        if isinstance(batch, Single):
            result = self._plain_pass(batch)
            names = [name for name in self.parameters if name not in leave_out]
            self._visit_slowly(batch, names, loop_pass, visit)
            return result
        fast = self._by_way(GradientMethod.FAST)
        result = self._fast_pass(batch, fast, visit) if fast else self._plain_pass(batch)
        if self.is_sharded and result.missed:
            raise LateError(_no_way(result.missed))
        by_vmap = [name for name in self._by_way(GradientMethod.VMAP) if name not in leave_out]
        by_loop = [name for name in self._by_way(GradientMethod.LOOP) if name not in leave_out]
        if by_vmap:
            self._visit_slowly(batch, by_vmap, self._vmap_or_loop, visit)
        if by_loop or result.missed:
            self._visit_slowly(batch, [*by_loop, *result.missed], loop_pass, visit)
        return result

    def _audit(self, batch: Batch, window: range, *, is_shuffled: bool = True) -> Audit:
        rows = list(window)
        if is_shuffled:
            rows = [rows[at] for at in torch.randperm(len(rows), generator=self._random).tolist()]
        reference = Reference.of(
            self.model, self.compute, batch, self.parameters, rows, self._random
        )
        return Audit(reference, self.tolerance)

    @property
    def tolerance(self) -> float:
        """What rounding explains, relative to a loss or a gradient; known after `inspect`."""
        if self._tolerance is None:
            raise RuntimeError("visit before check; a bug in tracin")
        return self._tolerance

    def loss_of(self, single: Batch) -> float:
        """The loss of one example in a batch of its own."""
        with torch.enable_grad():  # a loss may take gradients of its own
            return float(checked_losses(self.compute(self.model, single), 1).detach())

    def _compare(self, batch: Batch, result: Pass, audit: Audit, left_out: frozenset[str]) -> None:
        """Have the audit of a batch pass, or its parameters step down."""
        reference = audit.reference
        failed = audit.gaps(left_out)
        if failed is None:
            return  # nothing can be compared; whoever takes the losses will name the example
        at = slice(reference.window.start, reference.window.stop)
        found, wanted = result.losses[at], reference.losses
        if self._alone is not None:
            rows, losses = self._alone
            self._alone = None
            found = torch.cat([found, result.losses[rows]])
            wanted = torch.cat([wanted, losses.to(wanted)])
        if not bool(torch.isfinite(found.sum())):
            return
        refuse_other_losses(found, wanted, self.tolerance)
        if failed:
            # A ReLU whose input is zero but for rounding may switch with the order of a batch or
            # its size: ask the same batch.
            audit = self._audit(batch, range(length(batch)), is_shuffled=False)
            self._pass(batch, audit.take, tuple(left_out))
            failed = audit.gaps(left_out)
        if failed:
            self._settle(batch, failed)

    def _settle(self, batch: Batch, failed: Mapping[str, float]) -> None:
        """Find which way is right for parameters that failed the audit of a batch.

        Raises:
            SteppedDownError: Another way than the one taken.
            CoupledExamplesError: None is: examples depend on each other.
        """
        agreed = self._agreed(batch, {name: self.parameters[name] for name in failed})
        changed = {}
        for name, gap in failed.items():
            before = self.ways[name]
            reason = f"in a batch its {_OF[before.way]} and autograd differ by {gap:.1e}"
            if before.way == GradientMethod.FAST and self._holds_by_vmap(name, agreed):
                changed[name] = Covered(GradientMethod.VMAP, reason)
            elif before.way != GradientMethod.LOOP:
                changed[name] = Covered(GradientMethod.LOOP, reason)
        if changed:
            self._take(changed)
            raise SteppedDownError(changed)

    def _agreed(self, batch: Batch, parameters: Mapping[str, Tensor]) -> "list[_Agreed]":
        """The stretches of a batch that give what their examples give one by one.

        Raises:
            CoupledExamplesError: There are none, or losses differ.
            LossError: The loss draws random numbers, or changes state.
        """
        model, compute, tolerance = self.model, self.compute, self.tolerance
        agreed: list[_Agreed] = []
        for rows in _stretches(length(batch)):
            some = part(batch, rows)
            factors = audit_factors(length(some), self._random)
            apart = alone(model, compute, some, parameters, factors)
            refuse_unrepeatable(model, compute, part(some, [0]), apart.losses[:1], tolerance)
            together, losses = weighted_gradients(model, compute, some, parameters, factors)
            refuse_other_losses(losses, apart.losses, tolerance)
            if not differences(apart.gradients, together, tolerance, parameters):
                agreed.append(_Agreed(some, factors, together))
            elif not agreed and rows.stop >= length(batch):
                refuse_coupled(model, compute, some, parameters, factors, apart, tolerance)
        return agreed

    def _holds_by_vmap(self, name: str, agreed: "Sequence[_Agreed]") -> bool:
        one = {name: self.parameters[name]}
        for each in agreed:

            def run(visit: Visit, some: Batch = each.batch) -> None:
                vmap_pass(self.model, self.compute, some, one, visit)

            try:
                found = weighted_sum(run, one, each.factors)
            except Exception as error:  # torch raises all kinds here; another exact way is open
                if is_out_of_memory(error):
                    raise
                return False
            if differences(found, {name: each.gradients[name]}, self.tolerance, one):
                return False
        return True

    def _take(self, ways: Mapping[str, Covered]) -> None:
        """Take other ways from now on."""
        self.ways.update(ways)
        for name, covered in ways.items():
            _log.info("%s takes a slower way to its gradients: %s", name, covered)

    def audit_scores(
        self, result: Pass, scores: Tensor, queries: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Compare scores by forward mode with the products that autograd's gradients give.

        Args:
            result: What `visit` gave for the same batch, which left out the queries' parameters.
            scores: [examples, queries].
            queries: One gradient per query, by parameter name.

        Raises:
            SteppedDownError: They differ: forward mode is not used any more.
        """
        reference = result.reference
        if reference is None:
            return
        at = slice(reference.window.start, reference.window.stop)
        found = reference.factors.to(scores) @ scores[at]
        products = [
            [
                torch.linalg.vecdot(
                    reference.gradients[name].flatten(), query[name].to(found).flatten()
                )
                for name in query
            ]
            for query in queries
        ]
        wanted = torch.stack([torch.stack(each).sum() for each in products])
        sizes = torch.stack([torch.stack(each).abs().sum() for each in products])
        size = float(scores[at].abs().sum(0).max()) + float(sizes.max())
        if not torch.isfinite(wanted).all():
            return
        if not float((found - wanted).abs().max()) <= 100 * self.tolerance * size + 1e-30:
            self._has_forward_mode = False
            raise SteppedDownError({})

    def slow_names(self) -> list[str]:
        """The parameters that have no fast way."""
        return [name for name, covered in self.ways.items() if covered.way != GradientMethod.FAST]

    def along(self, batch: Batch, queries: Sequence[Mapping[str, Tensor]]) -> Tensor | None:
        """The products of all examples' gradients with dense queries, by forward mode.

        Returns:
            [examples, queries], over the parameters that the queries name; None if an operation of
            the model has no forward-mode rule.
        """
        parameters = {name: self.parameters[name] for name in queries[0]}
        if not self._has_forward_mode or any(p.is_complex() for p in parameters.values()):
            return None
        try:
            return jvp_scores(self.model, self.compute, batch, parameters, queries)
        except TracInError:
            raise
        except Exception as error:  # torch raises all kinds here; another exact way is open
            if is_out_of_memory(error):
                raise
            self._has_forward_mode = False
            return None

    def _by_way(self, way: GradientMethod) -> dict[str, Tensor]:
        return {n: p for n, p in self.parameters.items() if self.ways[n].way == way}

    def _fast_pass(self, batch: Batch, parameters: Mapping[str, Tensor], visit: VisitRows) -> Pass:
        try:
            return self._unwritten_pass(batch, parameters, visit)
        except UnlikeTrialError as error:
            if self.is_sharded:
                missed = dict.fromkeys(parameters, f"unlike in the trial: {error}")
                raise UnsupportedModelError(_no_way(missed)) from error
            plain = self._plain_pass(batch)
            missed = dict.fromkeys(parameters, f"unlike in the trial: {error}")
            return Pass(plain.outcome, plain.losses, missed)

    def _unwritten_pass(
        self, batch: Batch, parameters: Mapping[str, Tensor], visit: VisitRows
    ) -> Pass:
        """A fast pass on the batch's own memory, or on a copy if the model writes into it."""
        run = partial(self._watched_pass, parameters, visit)
        given = None if self._writes is not False else shared(batch)
        if given is None:
            own = copied(batch)
            before = versions(own)
            result = run(own, frozenset())
            self._writes = bool(self._writes) or versions(own) != before
            return result
        before = versions(given)
        try:
            result = run(given, storages(given))
        except WritesError:
            self._writes = True
            return run(copied(batch), frozenset())
        if versions(given) != before:
            raise DataError(
                "The model or its loss wrote into its batch in code that torch's function modes do "
                "not see, such as a scripted function, after it had left the first batch alone: "
                "some of the data in memory was changed. Give it tensors of its own, by a Dataset "
                "that clones."
            )
        return result

    def _watched_pass(
        self,
        parameters: Mapping[str, Tensor],
        visit: VisitRows,
        batch: Batch,
        kept: frozenset[int],
    ) -> Pass:
        with self._requiring(parameters):
            return fast_pass(
                self.model,
                self._on_given,
                batch,
                {name: self._within[name] for name in parameters},
                self._trial or ShapeProbe({}, ()),
                lambda name, form: visit(name, form, 0),
                kept,
            )

    def _plain_pass(self, batch: Batch) -> Pass:
        with torch.enable_grad():  # a loss may take gradients of its own
            outcome = self.compute(self.model, batch)
        return Pass(outcome, checked_losses(outcome, length(batch)).detach(), {})

    def _visit_slowly(
        self, batch: Batch, names: Sequence[str], run: Callable[..., None], visit: VisitRows
    ) -> None:
        parameters = {name: self.parameters[name] for name in names}
        numbers = sum(parameter.numel() for parameter in parameters.values())
        step = max(1, _FALLBACK_BLOCK // numbers)
        for start in range(0, length(batch), step):
            block = part(batch, slice(start, start + step))
            run(
                self.model,
                self.compute,
                block,
                parameters,
                lambda name, form, start=start: visit(name, form, start),
            )

    def _vmap_or_loop(
        self,
        model: Module,
        compute: Compute,
        batch: Batch,
        parameters: Mapping[str, Tensor],
        visit: Visit,
    ) -> None:
        """By vmap, unless this batch takes a path that vmap does not know."""
        try:
            vmap_pass(model, compute, batch, parameters, visit)
        except TracInError:
            raise
        except Exception as error:  # torch raises all kinds here; nothing was handed on yet
            if is_out_of_memory(error):
                raise
            loop_pass(model, compute, batch, parameters, visit)

    def _opinion(self, trial: Batch, tolerance: float) -> "_Opinion":
        """Compare the fast way on a pair of examples with autograd on each alone."""
        apart = alone(self.model, self.compute, trial, self.parameters, _FACTORS)
        missed: dict[str, str] = {}
        losses: list[Tensor] = []
        is_finite = all(each_says(apart.is_finite)) if self.is_sharded else apart.is_finite
        if not is_finite:
            return _Opinion(trial, apart, None, {}, is_agreed=False, is_finite=False)
        fast = self._by_way(GradientMethod.FAST)
        if not fast:
            return _Opinion(trial, apart, None, {}, is_agreed=True)

        def run(visit: Visit) -> None:
            if self._trial is None:
                self._trial = learn(self.model, self.compute, trial, self._within)
            within = {name: self._within[name] for name in fast}
            with self._requiring(fast):
                result = fast_pass(self.model, self.compute, trial, within, self._trial, visit)
            missed.update(result.missed)
            losses.append(result.losses)

        try:
            found = weighted_sum(run, fast, _FACTORS)
        except TracInError:
            raise
        except Exception as error:  # a model that cannot be watched: every exact way is still open
            if is_out_of_memory(error):
                raise
            reason = f"cannot be watched: {_first_line(error)}"
            if self.is_sharded:
                raise UnsupportedModelError(_no_way(dict.fromkeys(fast, reason))) from error
            return _Opinion(trial, apart, None, dict.fromkeys(fast, reason), is_agreed=True)
        if self.is_sharded:
            for said in each_says(dict(missed)):
                missed |= said
        wanted = {name: apart.gradients[name] for name in fast if name not in missed}
        gaps = differences(found, wanted, tolerance, self.parameters)
        is_agreed = not gaps and not are_apart(losses[0], apart.losses, tolerance)
        if self.is_sharded:
            is_agreed = all(each_says(is_agreed))
        return _Opinion(trial, apart, losses[0], missed, is_agreed, found, gaps)

    def _step_down(self, opinion: "_Opinion", missed: Mapping[str, str], tolerance: float) -> None:
        """Settle a slower way for the parameters that the fast one missed."""
        parameters = {name: self.parameters[name] for name in missed}
        wanted = {name: opinion.apart.gradients[name] for name in missed}

        def run(visit: Visit) -> None:
            vmap_pass(self.model, self.compute, opinion.trial, parameters, visit)

        failed: Mapping[str, object]
        try:
            failed = differences(
                weighted_sum(run, parameters, _FACTORS), wanted, tolerance, parameters
            )
            why = "vmap and autograd differ"
        except Exception as error:  # torch raises all kinds here; backward passes hold
            if is_out_of_memory(error):
                raise
            failed, why = parameters, f"vmap: {_first_line(error)}"
        self._take(
            {
                name: Covered(GradientMethod.LOOP, f"{reason}; {why}")
                if name in failed
                else Covered(GradientMethod.VMAP, reason)
                for name, reason in missed.items()
            }
        )


@dataclass(frozen=True)
class _Opinion:
    """What one pair of examples says of the fast way."""

    trial: Batch
    apart: Alone
    losses: Tensor | None  # those of the fast way, if it could be taken
    missed: dict[str, str]  # the parameters that it cannot be taken for, and why
    is_agreed: bool  # whether a second opinion cannot change anything
    found: Mapping[str, Tensor] = field(default_factory=dict)  # the fast sums of factor x gradient
    gaps: Mapping[str, float] = field(default_factory=dict)  # how far these are from autograd's
    is_finite: bool = True  # whether there is anything to compare with


@dataclass(frozen=True)
class _Agreed:
    """Examples that give in a batch what they give one by one."""

    batch: Batch
    factors: Tensor
    gradients: dict[str, Tensor]  # the sum of factor x gradient, by parameter


class SteppedDownError(Exception):
    """The audit failed for some parameters, which take slower ways now: do the pass again."""

    def __init__(self, ways: Mapping[str, Covered]) -> None:
        listed = ", ".join(sorted(ways)) or "forward mode"
        super().__init__(f"a slower way is taken for {listed}")


def until_settled(work: Callable[[], T]) -> T:
    """Do work that passes over data, again for as long as its audits find slower ways to take.

    Args:
        work: Begins anew whenever it is called, and keeps nothing of an earlier call.
    """
    while True:
        try:
            return work()
        except SteppedDownError as error:
            _log.info("the pass begins again: %s", error)


class LateError(UnsupportedModelError):
    """What one rank of a sharded model found after a pass: it goes on, and tells the others."""


def _from_rest(compute: Compute) -> Compute:
    """The same loss; every forward pass makes the same parameters whole in the same order."""

    def compute_from_rest(model: Module, batch: Batch) -> Any:
        rest(model)
        return compute(model, batch)

    return compute_from_rest


def _at_rest(model: Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of these names, in their parts."""
    rest(model)
    found = dict(model.named_parameters(remove_duplicate=False))
    return {name: found[name] for name in parameters}


def _in_real_numbers(visit: VisitRows, parameters: Mapping[str, Tensor]) -> VisitRows:
    """The same visitor, who is given a complex parameter's gradients as real numbers."""
    if not any(parameter.is_complex() for parameter in parameters.values()):
        return visit

    def visit_real(name: str, form: PerExampleGradient, row: int) -> None:
        visit(name, in_real_numbers(form) if parameters[name].is_complex() else form, row)

    return visit_real


def _no_way(missed: Mapping[str, str]) -> str:
    name, reason = min(missed.items())  # the same on every rank
    return (
        f"'{name}' (with {len(missed) - 1} more) of a sharded model has no fast way to per-example "
        f"gradients: {reason}. The slower ways need whole parameters. Leave it out by "
        "`parameters`, or gather the model on one device."
    )


def _on_copies(compute: Compute) -> Compute:
    """The same loss on tensors of its own: models may write into their batch."""

    def compute_on_copies(model: Module, batch: Batch) -> Any:
        return compute(model, content_of(copied(batch)))

    compute_on_copies.__wrapped__ = compute  # type: ignore[attr-defined]  # for names in errors
    return compute_on_copies


def _stretches(examples: int) -> list[slice]:
    """A batch in up to four stretches of at least two examples, or all there are."""
    step = max(2, -(-examples // 4))
    starts = list(range(0, examples, step))
    if len(starts) > 1 and examples - starts[-1] < 2:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], examples], strict=True)]


# Batches without an example dimension: a graph, an image with its boxes.
_ALONE = Covered(
    GradientMethod.LOOP, "examples come one at a time: their batches have no example dimension"
)

# What each way goes by, for reasons in words.
_OF = {
    GradientMethod.FAST: "rules",
    GradientMethod.VMAP: "vmap",
    GradientMethod.LOOP: "backward passes",
}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:100] if lines else type(error).__name__
