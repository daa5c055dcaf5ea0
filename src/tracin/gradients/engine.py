"""Per-example gradients of any model: the fast way where it holds, an exact one for the rest."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.errors import LossError, TracInError, UnsupportedModelError
from tracin.gradients.coverage import Covered, Way
from tracin.gradients.fast import Compute, Pass, checked_losses, fast_pass, learn
from tracin.gradients.forms import Form
from tracin.gradients.forward_mode import jvp_scores
from tracin.gradients.layouts import Trial
from tracin.gradients.ledger import Visit
from tracin.gradients.loop import loop_pass
from tracin.gradients.refusals import Guard
from tracin.gradients.self_check import (
    Alone,
    alone,
    are_apart,
    differences,
    refuse_coupled,
    tolerance_of,
    weighted_sum,
)
from tracin.gradients.vmapped import vmap_pass
from tracin.gradients.watch import UnlikeTrialError
from tracin.sharding import each_says, is_sharded, rest, whole

VisitRows = Callable[
    [str, Form, int], None
]  # name, gradients, the first example's row in the batch

# Unlike factors for the two examples of a trial, so that their places cannot be mixed up unseen.
_FACTORS = torch.tensor([0.7, -1.3])

# How far an example's squared length in a whole batch may be from that alone before it is another
# example's: far above what rounding does at a kink, far below what two examples differ by.
_PLACES = 0.05

# Numbers in one block of written-out fallback gradients: 128 MB in float32.
_FALLBACK_BLOCK = 1 << 25


@final
class Gradients:
    """The per-example gradients of chosen parameters, batch by batch.

    `check` must have seen a batch at the weights in place before `visit` is called. A parameter
    that once stepped down to a slower way stays there.

    A sharded model (see `tracin.sharding`) takes the fast way or none. Its ranks call everything
    together, `check` with the same batch; what a rank alone finds, it says after the pass.
    """

    def __init__(self, model: Module, compute: Compute, parameters: Mapping[str, Tensor]) -> None:
        self.model = model
        self.is_sharded = is_sharded(model)
        self.compute = _from_rest(compute) if self.is_sharded else compute
        self.parameters = _at_rest(model, parameters) if self.is_sharded else dict(parameters)
        # What forward passes use in the parameters' stead.
        self._within: Mapping[str, Tensor] = self.parameters
        self.ways: dict[str, Covered] = {}
        self._trial: Trial | None = None
        self._tolerance: float | None = None
        self._norms_alone: Tensor | None = None
        self._has_forward_mode = True

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Have the chosen parameters, and no others, require grad; put back what was on leaving."""
        with self._requiring(self.parameters):
            yield

    @contextmanager
    def _requiring(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        if self.is_sharded:
            rest(self.model)  # whole ones take their flags when they are made whole
        flags = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        chosen = {id(parameter) for parameter in parameters.values()}
        try:
            for parameter in flags:
                parameter.requires_grad_(id(parameter) in chosen)
            yield
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)

    def check(self, batch: Batch) -> None:
        """Settle each parameter's way on the first and last example of `batch`, against autograd.

        Where they disagree, pairs further inwards are asked for a second opinion: a ReLU whose
        input is zero but for rounding may switch with the batch size.

        Raises:
            LossError: The loss is no differentiable value an example.
            CoupledExamplesError: Examples are not independent of their batch.
            UnsupportedModelError: The model is sharded, and a parameter has no fast way.
        """
        if self.is_sharded:
            found = whole(self.model)
            self._within = {name: found[name] for name in self.parameters}
        tolerance = self._inspect(batch)
        for name in self.parameters:
            self.ways.setdefault(name, Covered(Way.FAST, "rules"))
        last = length(batch) - 1
        opinion = self._opinion(part(batch, [0, last]), tolerance)
        self._norms_alone = opinion.apart.norms if opinion.is_finite else None
        for start in range(1, last // 2 + 1):
            if opinion.is_agreed:
                break
            opinion = self._opinion(part(batch, [start, last - start]), tolerance)
        if not opinion.is_finite:
            return  # nothing can be compared; the pass itself will name the example
        if opinion.losses is None or opinion.missed or not opinion.is_agreed:
            refuse_coupled(
                self.model,
                self.compute,
                opinion.trial,
                self.parameters,
                _FACTORS,
                opinion.apart,
                tolerance,
            )
        if opinion.missed and self.is_sharded:
            raise UnsupportedModelError(_no_way(opinion.missed))
        if opinion.missed:
            self._step_down(opinion, tolerance)

    def _inspect(self, trial: Batch) -> float:
        """Look at one loss by itself; returns the tolerance that its precision asks for."""
        if self._tolerance is None:
            with torch.enable_grad(), Guard():
                loss = checked_losses(self.compute(self.model, part(trial, [0])), 1)
            if not loss.requires_grad:
                raise LossError(
                    "The losses do not depend on any traced parameter through autograd. Was the "
                    "loss computed under torch.no_grad(), or from detached outputs?"
                )
            self._tolerance = tolerance_of(self.parameters, loss)
        return self._tolerance

    def visit(
        self,
        batch: Batch,
        visit: VisitRows,
        *,
        leave_out: Sequence[str] = (),
        checked: Sequence[int] = (),
    ) -> Pass:
        """Hand every parameter's gradients on a batch to `visit`, each as soon as it is known.

        Args:
            batch: Examples first.
            visit: Called as visit(name, form, row): the form's first example is that row.
            leave_out: Parameters that are not wanted, of those that have no fast way.
            checked: The rows of the two examples that `check` saw, if they are in this batch: it
                is then made sure that their gradients are the same here as alone.

        Raises:
            ChangedPlacesError: They are not; call again, for another way is taken now.
            LateError: The model is sharded, and this batch has no fast way; the pass was finished,
                so that the ranks are in step.
        """
        fast = self._by_way(Way.FAST)
        watched = _Lengths(visit, checked) if checked and fast else None
        result = self._fast_pass(batch, fast, watched or visit) if fast else self._plain_pass(batch)
        if watched is not None and not result.missed:
            self._compare(watched.norms, fast)
        if self.is_sharded and result.missed:
            raise LateError(_no_way(result.missed))
        by_vmap = [name for name in self._by_way(Way.VMAP) if name not in leave_out]
        by_loop = [name for name in self._by_way(Way.LOOP) if name not in leave_out]
        if by_vmap:
            self._visit_slowly(batch, by_vmap, self._vmap_or_loop, visit)
        if by_loop or result.missed:
            self._visit_slowly(batch, [*by_loop, *result.missed], loop_pass, visit)
        return result

    def _compare(self, norms: Tensor | None, fast: Mapping[str, Tensor]) -> None:
        """Squared lengths in a whole batch against those alone, over the same parameters."""
        if self._norms_alone is None or len(fast) < len(self.parameters):
            return
        found = torch.zeros_like(self._norms_alone) if norms is None else norms
        if are_apart(found, self._norms_alone, _PLACES):
            reason = "in a whole batch examples change places"
            if self.is_sharded:
                raise LateError(_no_way(dict.fromkeys(fast, reason)))
            self.ways.update(dict.fromkeys(fast, Covered(Way.LOOP, reason)))
            raise ChangedPlacesError(reason)

    def slow_names(self) -> list[str]:
        """The parameters that have no fast way."""
        return [name for name, covered in self.ways.items() if covered.way != Way.FAST]

    def along(self, batch: Batch, queries: Sequence[Mapping[str, Tensor]]) -> Tensor | None:
        """The products of all examples' gradients with dense queries, by forward mode.

        Returns:
            [examples, queries], over the parameters that the queries name; None if an operation of
            the model has no forward-mode rule.
        """
        if not self._has_forward_mode:
            return None
        parameters = {name: self.parameters[name] for name in queries[0]}
        try:
            return jvp_scores(self.model, self.compute, batch, parameters, queries)
        except TracInError:
            raise
        except Exception:  # torch raises all kinds here; the caller has another exact way
            self._has_forward_mode = False
            return None

    def _by_way(self, way: Way) -> dict[str, Tensor]:
        return {n: p for n, p in self.parameters.items() if self.ways[n].way == way}

    def _fast_pass(self, batch: Batch, parameters: Mapping[str, Tensor], visit: VisitRows) -> Pass:
        try:
            with self._requiring(parameters):
                return fast_pass(
                    self.model,
                    self.compute,
                    batch,
                    {name: self._within[name] for name in parameters},
                    self._trial or Trial({}, ()),
                    lambda name, form: visit(name, form, 0),
                )
        except UnlikeTrialError as error:
            if self.is_sharded:
                missed = dict.fromkeys(parameters, f"unlike in the trial: {error}")
                raise UnsupportedModelError(_no_way(missed)) from error
            plain = self._plain_pass(batch)
            missed = dict.fromkeys(parameters, f"unlike in the trial: {error}")
            return Pass(plain.outcome, plain.losses, missed)

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
        except Exception:  # torch raises all kinds here; nothing was handed on yet
            loop_pass(model, compute, batch, parameters, visit)

    def _opinion(self, trial: Batch, tolerance: float) -> "_Opinion":
        """Compare the fast way on a pair of examples with autograd on each alone."""
        apart = alone(self.model, self.compute, trial, self.parameters, _FACTORS)
        missed: dict[str, str] = {}
        losses: list[Tensor] = []
        is_finite = all(each_says(apart.is_finite)) if self.is_sharded else apart.is_finite
        if not is_finite:
            return _Opinion(trial, apart, None, {}, is_agreed=False, is_finite=False)
        fast = self._by_way(Way.FAST)
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
        missed |= {
            name: f"its rules and autograd differ by {gap:.1e}" for name, gap in gaps.items()
        }
        return _Opinion(trial, apart, losses[0], missed, is_agreed)

    def _step_down(self, opinion: "_Opinion", tolerance: float) -> None:
        """Settle a slower way for the parameters that the fast one missed."""
        missed = opinion.missed
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
        except Exception as error:  # torch raises all kinds here; one backward an example holds
            failed, why = parameters, f"vmap: {_first_line(error)}"
        for name, reason in missed.items():
            if name in failed:
                self.ways[name] = Covered(Way.LOOP, f"{reason}; {why}")
            else:
                self.ways[name] = Covered(Way.VMAP, reason)


@dataclass(frozen=True)
class _Opinion:
    """What one pair of examples says of the fast way."""

    trial: Batch
    apart: Alone
    losses: Tensor | None  # those of the fast way, if it could be taken
    missed: dict[str, str]  # the parameters for which it does not hold, and why
    is_agreed: bool  # whether a second opinion cannot change anything
    is_finite: bool = True  # whether there is anything to compare with


class ChangedPlacesError(Exception):
    """A batch gave an example another gradient than it has alone; slower ways are taken now."""


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


def _no_way(missed: Mapping[str, str]) -> str:
    name, reason = min(missed.items())  # the same on every rank
    return (
        f"'{name}' (with {len(missed) - 1} more) of a sharded model has no fast way to per-example "
        f"gradients: {reason}. The slower ways need whole parameters. Leave it out by "
        "`parameters`, or gather the model on one device."
    )


class _Lengths:
    """Passes gradients on, and adds up the squared lengths of a few examples' on the way."""

    def __init__(self, visit: VisitRows, rows: Sequence[int]) -> None:
        self.norms: Tensor | None = None
        self._visit = visit
        self._rows = rows

    def __call__(self, name: str, form: Form, row: int) -> None:
        norms = torch.cat([form.part(at, at + 1).squared_norm() for at in self._rows])
        self.norms = norms if self.norms is None else self.norms + norms
        self._visit(name, form, row)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:100] if lines else type(error).__name__
