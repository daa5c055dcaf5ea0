"""One pass over a batch: each parameter's gradients by the method that is settled for it."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from tracin.data import Batch, length
from tracin.data.batches import Single
from tracin.errors import UnsupportedModelError
from tracin.gradients.batch_memory import BatchMemory
from tracin.gradients.compute import checked_losses
from tracin.gradients.coverage import GradientMethod
from tracin.gradients.fast import Pass, fast_pass
from tracin.gradients.kept_shapes import KeptShapes
from tracin.gradients.layouts import ShapeProbe
from tracin.gradients.loop import loop_gradients
from tracin.gradients.method_table import MethodTable
from tracin.gradients.probing import learn
from tracin.gradients.sharded_refusal import LateError, without_fast_method
from tracin.gradients.slow_methods import slow_pass, vmap_or_loop
from tracin.gradients.traced_model import TracedModel
from tracin.gradients.visit import Visit
from tracin.gradients.watch import UnlikeTrialError
from tracin.gradients.writing import WritesError


class NotSettledError(Exception):
    """The fast method misses parameters of which no check has shown what does instead.

    Args:
        missed: The parameters, and why.
    """

    def __init__(self, missed: Mapping[str, str]) -> None:
        super().__init__(", ".join(missed))
        self.missed = missed


@final
class BatchPass:
    """Passes over batches, one at a time; each is handed on parameter by parameter.

    Args:
        traced: The model, its loss and its parameters.
        methods: Where the methods are kept.
        shapes: What is known of the model's calls; what is learned is kept there.
    """

    def __init__(self, traced: TracedModel, methods: MethodTable, shapes: KeptShapes) -> None:
        self._traced = traced
        self._methods = methods
        self._memory = BatchMemory()
        self._kept = shapes
        self._learned: set[tuple[str, ...]] = set()  # here, and not before

    def run(self, batch: Batch, visit: Visit, leave_out: Collection[str] = ()) -> Pass:
        """Hand the gradients of all parameters on.

        Args:
            batch: Examples first.
            visit: Takes each parameter's gradients, as soon as they are known.
            leave_out: Parameters to skip, of those that the fast method does not cover.

        Raises:
            LateError: The model is sharded, and the fast method cannot cover this batch.
            DataError: The model wrote into its batch where that cannot be seen beforehand.
            NotSettledError: The fast method misses parameters, and no check has been made yet.
        """
        fast, by_vmap, by_loop = self._by_method(batch)
        result = self._fast(batch, fast, visit) if fast else self._losses_alone(batch)
        if self._traced.is_sharded and result.missed:
            raise LateError(without_fast_method(result.missed))
        if result.missed and not self._methods.is_settled:
            raise NotSettledError(result.missed)
        missed = {name: self._traced.parameters[name] for name in result.missed}
        for gradients_of, slow in (
            (vmap_or_loop, by_vmap),
            (loop_gradients, {**by_loop, **missed}),
        ):
            wanted = {name: one for name, one in slow.items() if name not in leave_out}
            if wanted:
                slow_pass(self._traced, gradients_of, batch, wanted, visit)
        return result

    def on_trial(self, trial: Batch, parameters: Mapping[str, Tensor], visit: Visit) -> Pass:
        """The fast method on a copy of a few examples; the first ones teach the shapes of calls."""
        traced = self._traced
        within = {name: traced.within[name] for name in parameters}
        probe = self._shapes(trial, within)
        with traced.requiring(parameters):
            return fast_pass(traced.model, traced.compute, trial, within, probe, visit)

    def _shapes(self, batch: Batch, within: Mapping[str, Tensor]) -> ShapeProbe:
        """What each call does with these parameters; learned again once some have stepped down.

        A call is known by the parameters it takes: without its weight, that of a bias is another.
        """
        names = tuple(within)
        probe = self._kept.get(names)
        if probe is None:
            probe = learn(self._traced.model, self._traced.compute, batch, within)
            self._kept.put(names, probe)
            self._learned.add(names)
        return probe

    def forget_shapes(self) -> bool:
        """Learn anew what calls do; returns whether that was known from before, in part at least.

        A model may have changed since.
        """
        names = tuple(self._methods.by(GradientMethod.FAST))
        is_from_before = self._kept.get(names) is not None and names not in self._learned
        if is_from_before:
            self._kept.clear()
        return is_from_before

    def _by_method(self, batch: Batch) -> list[Mapping[str, Tensor]]:
        if isinstance(batch, Single):
            return [{}, {}, self._traced.parameters]
        methods = GradientMethod.FAST, GradientMethod.VMAP, GradientMethod.LOOP
        return [self._methods.by(method) for method in methods]

    def _fast(self, batch: Batch, parameters: Mapping[str, Tensor], visit: Visit) -> Pass:
        traced = self._traced
        within = {name: traced.within[name] for name in parameters}
        probe = self._shapes(batch, within)
        lent = self._memory.lend(batch)
        try:
            with traced.requiring(parameters):
                result = fast_pass(
                    traced.model, traced.on_given, lent.batch, within, probe, visit, lent.kept
                )
        except WritesError:
            self._memory.copy_from_now_on()
            return self._fast(batch, parameters, visit)
        except UnlikeTrialError as error:
            missed = dict.fromkeys(parameters, f"unlike in the trial: {error}")
            if traced.is_sharded:
                raise UnsupportedModelError(without_fast_method(missed)) from error
            return replace(self._losses_alone(batch), missed=missed)
        self._memory.take_back(lent)
        return result

    def _losses_alone(self, batch: Batch) -> Pass:
        with torch.enable_grad():  # a loss may take gradients of its own
            outcome = self._traced.compute(self._traced.model, batch)
        return Pass(outcome, checked_losses(outcome, length(batch)).detach(), {})
