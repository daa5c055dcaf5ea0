"""Which parameters a step moves and which are traced, as training freezes and unfreezes them."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from tracin.data import Examples, content_of, move
from tracin.errors import TracingError, UnsupportedModelError
from tracin.gradients.compute import Compute
from tracin.guards import untouched, use_eval
from tracin.plain_text import listed
from tracin.random_state import same_random_state
from tracin.scoring.last_used import last_used
from tracin.scoring.parameters import LAST, Selection, chosen_parameters


@final
class TracedParameters:
    """The parameters of a step, and their values before it.

    Attributes:
        traced: Name -> parameter: those whose gradients are shared among examples.
        moving: Name -> parameter: all that a step may move, traced or not.
        before: Name -> the value before the step; empty where it is not known.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        selection: Selection,
        compute: Compute,
        train: Examples,
    ) -> None:
        chosen_parameters(model, selection)
        self._model, self._optimizer, self._selection = model, optimizer, selection
        self._compute, self._train = compute, train
        self.traced: dict[str, Tensor] = {}
        self.moving: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self._flags: list[tuple[bool, bool]] = []
        self._versions: dict[str, int] = {}

    def refresh(self) -> bool:
        """Look anew where parameters were frozen or unfrozen; True if others are traced now."""
        optimized = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        flags = [(p.requires_grad, id(p) in optimized) for p in self._model.parameters()]
        if flags == self._flags:
            return False
        self._flags = flags
        chosen: dict[str, Tensor] = dict(self._chosen())
        self.moving = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if name in chosen or (parameter.requires_grad and id(parameter) in optimized)
        }
        self.before = {}
        if chosen.keys() == self.traced.keys():
            return False
        _refuse_complex(chosen)
        self.traced = chosen
        return True

    def begin_step(self) -> None:
        """Keep the values before a step, where the last one did not leave them."""
        if not self.before:
            self.before = {name: p.detach().clone() for name, p in self.moving.items()}

    def end_step(self) -> None:
        """The values now are those before the next step."""
        for name, parameter in self.moving.items():
            self.before[name].copy_(parameter.detach())
        self._versions = {name: one._version for name, one in self.moving.items()}

    def forget(self) -> None:
        """The next step begins elsewhere."""
        self.before = {}

    def refuse_changed(self, step: int) -> None:
        """The values must be those that the last traced step ended with."""
        if not self.before:
            return
        for name, parameter in self.moving.items():
            if parameter._version != self._versions.get(name) and not torch.equal(
                parameter.detach(), self.before[name]
            ):
                raise TracingError(
                    f"The model changed between two traced steps: '{name}' is not what "
                    f"optimizer.step() number {step - 1} left. To load other weights, close the "
                    "Tracer first and open one with a new folder."
                )

    def refuse_moving_frozen(self) -> None:
        """Momentum and weight decay move a frozen parameter for as long as it has a gradient."""
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        moving = [
            names[id(parameter)]
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and not parameter.requires_grad and id(parameter) in names
        ]
        if moving:
            raise TracingError(
                f"{listed(moving)} does not require a gradient, but still holds one from earlier "
                "steps, so momentum and weight decay keep moving it, for no example. Clear the "
                "gradient when you freeze: parameter.grad = None, or optimizer.zero_grad() before "
                "requires_grad_(False)."
            )

    def _chosen(self) -> dict[str, Parameter]:
        """The parameters to trace, as far as they are trainable now."""
        if self._selection != LAST:
            return chosen_parameters(self._model, self._selection)
        with untouched(self._model), same_random_state():
            use_eval(self._model)
            device = next(self._model.parameters()).device
            example = content_of(move(self._train.few([0]), device))
            return last_used(self._model, lambda: self._compute(self._model, example))


def _refuse_complex(parameters: Mapping[str, Tensor]) -> None:
    names = [name for name, parameter in parameters.items() if parameter.is_complex()]
    if names:
        raise UnsupportedModelError(
            f"'{names[0]}' (with {len(names) - 1} more) is complex, and steps of complex "
            "parameters are not traced. Leave them out by parameters=[...], or score recorded "
            "checkpoints with tracin.TracIn, which takes them."
        )
