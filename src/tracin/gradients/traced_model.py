"""A model with its loss and the parameters that are traced."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, content_of, copied, length
from tracin.gradients.compute import Compute, checked_losses
from tracin.sharding import is_sharded, rest, whole


@final
class TracedModel:
    """What every gradient method differentiates.

    Attributes:
        model: In eval mode whenever gradients are computed.
        on_given: The loss on the very memory of a batch.
        compute: The loss on a copy of the batch, since models may write into it.
        parameters: The traced ones, by name; of a sharded model in their parts.
        within: The tensors that forward passes use as these parameters: the whole ones, if the
            model is sharded.
        is_sharded: Whether ranks hold parts of its parameters.
        is_reentrant: Whether stretches under reentrant activation checkpointing were met.
    """

    def __init__(self, model: Module, compute: Compute, parameters: Mapping[str, Tensor]) -> None:
        self.model = model
        self.is_sharded = is_sharded(model)
        self.on_given = _from_rest(compute) if self.is_sharded else compute
        self.compute = _on_copies(self.on_given)
        self.parameters = _at_rest(model, parameters) if self.is_sharded else dict(parameters)
        self.within: Mapping[str, Tensor] = self.parameters
        self.is_reentrant = False
        self._turned_off: list[Tensor] = []

    def find_whole(self) -> None:
        """Look up the whole parameters of a sharded model, at the weights in place."""
        if self.is_sharded:
            found = whole(self.model)
            self.within = {name: found[name] for name in self.parameters}

    @contextmanager
    def requiring(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """Let these parameters, and no others, require grad; restore the flags on leaving.

        Of a model with reentrant stretches, others that were trained require grad as well.
        """
        if self.is_sharded:
            rest(self.model)  # whole ones take their flags when they are made whole
        chosen = {id(parameter) for parameter in parameters.values()}
        others = [
            p
            for p in self.model.parameters()
            if p.requires_grad != (id(p) in chosen) and not (p.requires_grad and self.is_reentrant)
        ]
        outer = self._turned_off
        self._turned_off = [*outer, *(p for p in others if p.requires_grad)]
        try:
            for parameter in others:
                parameter.requires_grad_(id(parameter) in chosen)
            yield
        finally:
            self._turned_off = outer
            for parameter in others:
                parameter.requires_grad_(id(parameter) not in chosen)

    def note_reentrant(self) -> None:
        """Note that the model has reentrant stretches: what was trained requires grad from now."""
        self.is_reentrant = True
        for parameter in self._turned_off:
            parameter.requires_grad_()

    def loss_of(self, single: Batch) -> float:
        """The loss of one example in a batch of its own."""
        return float(self.losses_of(single))

    def losses_of(self, batch: Batch) -> Tensor:
        """The losses of a batch: [examples]."""
        with torch.enable_grad():  # a loss may take gradients of its own
            return checked_losses(self.compute(self.model, batch), length(batch)).detach()


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


def _on_copies(compute: Compute) -> Compute:
    def compute_on_copies(model: Module, batch: Batch) -> Any:
        return compute(model, content_of(copied(batch)))

    compute_on_copies.__wrapped__ = compute  # type: ignore[attr-defined]  # for names in errors
    return compute_on_copies
