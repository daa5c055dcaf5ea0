"""Per-example gradients of any model: the fast way where it holds, an exact one for the rest."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.errors import LossError, TracInError
from tracin.gradients.coverage import Covered, Way
from tracin.gradients.fast import Compute, Pass, checked_losses, fast_pass, learn
from tracin.gradients.forms import Form
from tracin.gradients.forms.form import BLOCK
from tracin.gradients.forward_mode import jvp_scores
from tracin.gradients.layouts import Role
from tracin.gradients.ledger import Visit
from tracin.gradients.loop import loop_pass
from tracin.gradients.self_check import differences, reference, tolerance_of, weighted_sum
from tracin.gradients.vmapped import vmap_pass
from tracin.gradients.watch import UnlikeTrialError

TRIAL = 3  # examples in the self-check: enough for cross terms, few enough to cost nothing

VisitRows = Callable[
    [str, Form, int], None
]  # name, gradients, the first example's row in the batch

# Numbers in one block of written-out fallback gradients: 128 MB in float32.
_FALLBACK_BLOCK = 8 * BLOCK


@final
class Gradients:
    """The per-example gradients of chosen parameters, batch by batch.

    `check` must have seen a batch at the weights in place before `visit` is called; the ways that
    it settles hold until it is called again.
    """

    def __init__(self, model: Module, compute: Compute, parameters: Mapping[str, Tensor]) -> None:
        self.model = model
        self.compute = compute
        self.parameters = dict(parameters)
        self.ways: dict[str, Covered] = {}
        self._roles: dict[str, Role] | None = None
        self._has_forward_mode = True

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Have the chosen parameters, and no others, require grad; put back what was on leaving."""
        flags = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        chosen = {id(parameter) for parameter in self.parameters.values()}
        try:
            for parameter in flags:
                parameter.requires_grad_(id(parameter) in chosen)
            yield
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)

    def check(self, batch: Batch) -> None:
        """Settle each parameter's way on the first examples of `batch`, against autograd.

        Raises:
            LossError: The loss is no differentiable value an example.
            CoupledExamplesError: Examples are not independent of their batch.
        """
        here = length(batch)
        trial = part(batch, [example % here for example in range(TRIAL)])
        with torch.enable_grad():
            losses = checked_losses(self.compute(self.model, trial), TRIAL)
        if not losses.requires_grad:
            raise LossError(
                "The losses do not depend on any traced parameter through autograd. Was the loss "
                "computed under torch.no_grad(), or from detached outputs?"
            )
        tolerance = tolerance_of(self.parameters, losses)
        factors = torch.tensor([0.7, -1.3, 1.1], dtype=losses.dtype, device=losses.device)
        expected = reference(self.model, self.compute, trial, self.parameters, factors, tolerance)
        missed = self._check_fast(trial, factors, expected, tolerance)
        self.ways = {name: Covered(Way.FAST, "rules") for name in self.parameters}
        if missed:
            self._step_down(missed, trial, factors, expected, tolerance)

    def visit(self, batch: Batch, visit: VisitRows, *, leave_out: Sequence[str] = ()) -> Pass:
        """Hand every parameter's gradients on a batch to `visit`, each as soon as it is known.

        Args:
            batch: Examples first.
            visit: Called as visit(name, form, row): the form's first example is that row.
            leave_out: Parameters that are not wanted, of those that have no fast way.
        """
        fast = {n: p for n, p in self.parameters.items() if self.ways[n].way == Way.FAST}
        slow = [n for n in self.parameters if n not in fast and n not in leave_out]
        result = self._plain_pass(batch) if not fast else self._fast_pass(batch, fast, visit)
        by_vmap = [n for n in slow if self.ways[n].way == Way.VMAP]
        by_loop = [n for n in slow if self.ways[n].way == Way.LOOP] + list(result.missed)
        for names, run in ((by_vmap, vmap_pass), (by_loop, loop_pass)):
            if names:
                self._visit_slowly(batch, names, run, visit)
        return result

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

    def _fast_pass(self, batch: Batch, parameters: Mapping[str, Tensor], visit: VisitRows) -> Pass:
        try:
            return fast_pass(
                self.model,
                self.compute,
                batch,
                parameters,
                self._roles or {},
                lambda name, form: visit(name, form, 0),
            )
        except UnlikeTrialError as error:
            plain = self._plain_pass(batch)
            missed = dict.fromkeys(parameters, f"unlike in the trial: {error}")
            return Pass(plain.outcome, plain.losses, missed)

    def _plain_pass(self, batch: Batch) -> Pass:
        with torch.no_grad():
            outcome = self.compute(self.model, batch)
        return Pass(outcome, checked_losses(outcome, length(batch)), {})

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

    def _check_fast(
        self, trial: Batch, factors: Tensor, expected: Mapping[str, Tensor], tolerance: float
    ) -> dict[str, str]:
        """The parameters for which the fast way does not hold, with the reason."""
        missed: dict[str, str] = {}

        def run(visit: Visit) -> None:
            if self._roles is None:
                self._roles = learn(self.model, self.compute, trial, self.parameters)
            roles = self._roles
            result = fast_pass(self.model, self.compute, trial, self.parameters, roles, visit)
            missed.update(result.missed)

        try:
            found = weighted_sum(run, self.parameters, factors)
        except TracInError:
            raise
        except Exception as error:  # a model that cannot be watched: every exact way is still open
            return dict.fromkeys(self.parameters, f"cannot be watched: {_first_line(error)}")
        for name, gap in differences(found, expected, tolerance).items():
            missed.setdefault(name, f"its rules and autograd differ by {gap:.1e}")
        return missed

    def _step_down(
        self,
        missed: Mapping[str, str],
        trial: Batch,
        factors: Tensor,
        expected: Mapping[str, Tensor],
        tolerance: float,
    ) -> None:
        parameters = {name: self.parameters[name] for name in missed}
        wanted = {name: expected[name] for name in missed}

        def run(visit: Visit) -> None:
            vmap_pass(self.model, self.compute, trial, parameters, visit)

        failed: Mapping[str, object]
        try:
            failed = differences(weighted_sum(run, parameters, factors), wanted, tolerance)
            why = "vmap and autograd differ"
        except Exception as error:  # torch raises all kinds here; one backward an example holds
            failed, why = parameters, f"vmap: {_first_line(error)}"
        for name, reason in missed.items():
            if name in failed:
                self.ways[name] = Covered(Way.LOOP, f"{reason}; {why}")
            else:
                self.ways[name] = Covered(Way.VMAP, reason)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:100] if lines else type(error).__name__
