"""Adds up the uses of each parameter in one backward pass, and hands each complete sum on.

A parameter's per-example gradient is the sum over its uses, cross terms included; it is handed on
inside the backward pass, so that all layers' gradients are never held at once.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import final

import torch
from torch import Tensor

from tracin.gradients.batching import quiet_batching
from tracin.gradients.forms import (
    Computed,
    Dense,
    PerExampleGradient,
    full,
    is_complex,
    real_part,
    total,
)
from tracin.gradients.forms.form import BLOCK
from tracin.gradients.regions import LaterUse
from tracin.gradients.routed import Routed
from tracin.gradients.rules import Leaf, Use
from tracin.gradients.visit import Visit
from tracin.torch_internals import pulled_back


@final
class GradientAccumulator:
    """The sums of one pass; it calls `visit` once per parameter that was used.

    Args:
        parameters: The traced ones, by name.
        visit: Takes each one's gradients, those of all rows at once.
        is_settled: Whether the gradients must not depend on the weights any more, because these
            change before the gradients are read.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], visit: Visit, *, is_settled: bool = False
    ) -> None:
        self.failures: dict[str, Exception] = {}
        self._parameters = parameters
        self._visit: Visit | None = visit
        self._is_settled = is_settled
        self._left_out: Collection[str] = ()
        self._pending: Counter[str] = Counter()
        self._forms: defaultdict[str, list[PerExampleGradient]] = defaultdict(list)
        self._derived: dict[str, Leaf] = {}

    def derive(self, leaf: Leaf) -> None:
        """A tensor made of parameters alone: they wait for its gradient."""
        self._derived[leaf.name] = leaf
        for source in self._sources(leaf):
            self._pending[source.name] += 1

    def meet(self, use: Use | LaterUse | Routed) -> Callable[[Tensor], None]:
        """Parameters met data: they wait for the gradient of the call's output."""
        for leaf, _ in use.parts:
            self._pending[leaf.name] += 1

        def deliver(delta: Tensor) -> None:
            with torch.no_grad():
                for leaf, form in use.forms(delta):
                    if isinstance(form, Exception):
                        self._fail(leaf, form)
                    else:
                        self._put(leaf, form)
                    if self._is_last_use(leaf.name):
                        self._complete(leaf.name)

        return deliver

    def leave_out(self, names: Collection[str]) -> None:
        """Hand on nothing of these parameters: another method covers them."""
        self._left_out = names

    @torch.no_grad()
    def close(self) -> None:
        """After the backward pass: complete what waits for calls that the loss does not use."""
        for name in [*reversed(self._derived), *self._parameters]:
            if self._pending[name] > 0:
                self._pending[name] = 0
                self._complete(name)

    def let_go(self) -> None:
        """Keep nothing: the graph may live on, and its hooks refer to this object.

        A cycle through the graph's nodes, which are not Python's, would never be collected.
        """
        self._visit = None
        self._forms.clear()
        self._derived.clear()

    def _fail(self, leaf: Leaf, error: Exception) -> None:
        for root in leaf.roots:
            self.failures[root] = error

    def _put(self, leaf: Leaf, form: PerExampleGradient) -> None:
        forms = self._forms[leaf.name]
        if self._is_settled:
            form = form.settled()
        if forms and isinstance(form, Dense) and isinstance(forms[-1], Dense):
            # A recurrent cell is used at every position: one sum is held, not all of them.
            form = Dense(forms.pop().dense() + form.dense())
        forms.append(form)

    def _is_last_use(self, name: str) -> bool:
        """Count one use of a parameter or derived tensor; whether none is left."""
        self._pending[name] -= 1
        return self._pending[name] == 0

    def _complete(self, name: str) -> None:
        if name in self._derived:
            self._pull_back(self._derived[name])
            return
        forms = self._forms.pop(name, [])
        is_wanted = name not in self._left_out and name not in self.failures
        if forms and is_wanted and self._visit is not None:
            self._visit(name, _total(forms, self._parameters[name]), 0)

    def _pull_back(self, leaf: Leaf) -> None:
        """From a derived tensor's gradients to those of what it is made of."""
        forms = self._forms.pop(leaf.name, [])
        sources = self._sources(leaf)
        if forms and leaf.is_overwritten and any(s.name in self._derived for s in sources):
            self._fail(leaf, RuntimeError("a tensor made of it was changed in place"))
        elif forms:
            form = _total(forms, leaf.tensor)
            moves = [] if leaf.is_overwritten else leaf.steps
            kept = {step.source.name: moved for step in moves if (moved := step.move(form))}
            for source in sources:
                self._put(source, kept.get(source.name) or _pulled(leaf.tensor, source, form))
        for source in sources:
            if self._is_last_use(source.name):
                self._complete(source.name)

    def _sources(self, leaf: Leaf) -> list[Leaf]:
        if leaf.steps:
            return [step.source for step in leaf.steps]
        return [Leaf(name, self._parameters[name], (name,)) for name in leaf.roots]


def _total(forms: list[PerExampleGradient], tensor: Tensor) -> PerExampleGradient:
    """All uses together; a real tensor among complex numbers has the real part as its gradient."""
    form = total(forms)
    return real_part(form) if is_complex(form) and not tensor.is_complex() else form


def _pulled(tensor: Tensor, source: Leaf, form: PerExampleGradient) -> PerExampleGradient:
    """By autograd through the parameter-only graph, in blocks of examples."""

    def make(start: int, stop: int) -> Tensor:
        rows = form.part(start, stop).dense()
        rows = rows.view(stop - start, *tensor.shape).to(tensor.dtype)
        with torch.enable_grad(), quiet_batching():
            gradient = pulled_back(tensor, source.tensor, rows)
        if gradient is None:
            gradient = source.tensor.new_zeros(stop - start, *source.tensor.shape)
        gradient = full(gradient)
        return gradient.flatten(1) if gradient.ndim > 1 else gradient.unsqueeze(1)

    numbers = source.tensor.numel()
    written = form.written + numbers
    if form.examples * written <= BLOCK:
        return Dense(make(0, form.examples))
    return Computed(make, form.examples, numbers, written, form.device)
