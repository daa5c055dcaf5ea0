"""Adds up the uses of each parameter during one backward pass, and hands each sum on when complete.

A parameter's per-example gradient is the sum over its uses, cross terms included; it is handed on
inside the backward pass, so that all layers' gradients are never held at once.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import final

import torch
from torch import Tensor

from tracin.gradients.batching import quiet_batching
from tracin.gradients.forms import Dense, Form, Outer, total
from tracin.gradients.rules import Leaf, Use

Visit = Callable[[str, Form], None]


@final
class Ledger:
    """The account of one pass; `visit(name, form)` is called once a parameter that was used."""

    def __init__(self, parameters: Mapping[str, Tensor], visit: Visit) -> None:
        self.failures: dict[str, Exception] = {}
        self._parameters = parameters
        self._visit = visit
        self._left_out: Collection[str] = ()
        self._pending: Counter[str] = Counter()
        self._forms: defaultdict[str, list[Form]] = defaultdict(list)
        self._derived: dict[str, Leaf] = {}

    def derive(self, leaf: Leaf) -> None:
        """A tensor made of parameters alone: they wait for its gradient."""
        self._derived[leaf.name] = leaf
        for source in _sources(leaf):
            self._pending[source] += 1

    def meet(self, use: Use) -> Callable[[Tensor], None]:
        """Parameters met data: they wait for the gradient of the call's output."""
        for leaf, _ in use.parts:
            self._pending[leaf.name] += 1

        def deliver(delta: Tensor) -> None:
            with torch.no_grad():
                for leaf, form in use.forms(delta):
                    self._receive(leaf, form)

        return deliver

    def leave_out(self, names: Collection[str]) -> None:
        """Nothing of these parameters is handed on: another way covers them."""
        self._left_out = names

    @torch.no_grad()
    def close(self) -> None:
        """After the backward pass: settle what waited for calls that the loss does not use."""
        for name, leaf in reversed(self._derived.items()):
            if self._pending[name] > 0:
                self._pending[name] = 0
                self._complete(leaf)
        for name in self._parameters:
            if self._pending[name] > 0:
                self._hand_on(name)

    def _receive(self, leaf: Leaf, form: Form | Exception) -> None:
        if isinstance(form, Exception):
            for root in leaf.roots:
                self.failures[root] = form
        else:
            self._forms[leaf.name].append(form)
        self._settle(leaf)

    def _settle(self, leaf: Leaf) -> None:
        self._pending[leaf.name] -= 1
        if self._pending[leaf.name] == 0:
            self._complete(leaf)

    def _complete(self, leaf: Leaf) -> None:
        if leaf.name in self._derived:
            self._pull_back(leaf)
        else:
            self._hand_on(leaf.name)

    def _hand_on(self, name: str) -> None:
        forms = self._forms.pop(name, [])
        if forms and name not in self._left_out and name not in self.failures:
            self._visit(name, total(forms))

    def _pull_back(self, leaf: Leaf) -> None:
        """From a derived tensor's gradients to those of the parameters that it is made of."""
        forms = self._forms.pop(leaf.name, [])
        if leaf.transpose_of is not None:
            for form in forms:
                self._forms[leaf.transpose_of.name].append(_transposed(form, leaf.tensor))
            self._settle(leaf.transpose_of)
            return
        roots = [Leaf(name, self._parameters[name], (name,)) for name in leaf.roots]
        if forms:
            rows = total(forms).dense()
            rows = rows.view(rows.shape[0], *leaf.tensor.shape).to(leaf.tensor.dtype)
            for root, gradient in zip(roots, _pulled(leaf.tensor, roots, rows), strict=True):
                if gradient is not None:
                    self._forms[root.name].append(Dense(gradient))
        for root in roots:
            self._settle(root)


def _sources(leaf: Leaf) -> list[str]:
    return [leaf.transpose_of.name] if leaf.transpose_of else list(leaf.roots)


def _transposed(form: Form, tensor: Tensor) -> Form:
    if isinstance(form, Outer):
        return form.transposed()
    return Dense(form.dense().view(form.examples, *tensor.shape).mT)


def _pulled(tensor: Tensor, roots: list[Leaf], rows: Tensor) -> tuple[Tensor | None, ...]:
    with torch.enable_grad(), quiet_batching():
        return torch.autograd.grad(
            tensor,
            [root.tensor for root in roots],
            rows,
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
