"""What one optimizer step did: what it started from, its parts for examples, and the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from tracin.precision import in_double
from tracin.tracing.gradient_use import GradientUse, measured_use
from tracin.tracing.micro_batches import MicroBatch
from tracin.tracing.raw_gradients import densified
from tracin.tracing.updates import Update


@final
@dataclass(frozen=True, eq=False)
class StepInputs:
    """What an optimizer step starts from, by parameter.

    Attributes:
        gradients: What the optimizer is given.
        versions: How often each was changed in place by then.
        options: Those of its group.
        scale: By what a fused optimizer divides the gradients.
    """

    gradients: dict[str, Tensor]
    versions: dict[str, int]
    options: dict[str, Mapping[str, Any]]
    scale: float

    @classmethod
    def of(
        cls, optimizer: Optimizer, traced: Mapping[str, Tensor], *, is_overwriting: bool
    ) -> "StepInputs":
        """Read them just before the step."""
        unscale = getattr(optimizer, "grad_scale", None)  # fused optimizers divide on their own
        is_copied = is_overwriting or unscale is not None
        names = {id(parameter): name for name, parameter in traced.items()}
        options: dict[str, Mapping[str, Any]] = {}
        gradients: dict[str, Tensor] = {}
        versions: dict[str, int] = {}
        for group in optimizer.param_groups:
            group_options = {key: value for key, value in group.items() if key != "params"}
            for parameter in group["params"]:
                name, gradient = names.get(id(parameter)), parameter.grad
                if name is not None and gradient is not None:
                    options[name], versions[name] = group_options, gradient._version
                    is_own = gradient.is_sparse or not is_copied
                    gradients[name] = densified(gradient) if is_own else gradient.clone()
        return cls(gradients, versions, options, float(unscale) if unscale is not None else 1.0)


@final
class StepParts:
    """A step taken apart.

    Attributes:
        scales: Parameter -> what examples' shares of its gradient are multiplied by.
        is_untouched: Whether the optimizer was given what the backward passes left.
        rest: The share of the gradient's length that belongs to no example.
        own: Part of the step that belongs to no example -> parameter -> its direction.
    """

    def __init__(
        self, inputs: StepInputs, updates: Mapping[str, Update], uses: Mapping[str, GradientUse]
    ) -> None:
        self._inputs, self._updates, self._uses = inputs, updates, uses
        self.scales = {
            name: update.scale * (uses[name].factor / inputs.scale)
            for name, update in updates.items()
        }
        self.is_untouched = all(
            isinstance(use.factor, float) and use.factor == 1.0 and use.rest is None
            for use in uses.values()
        )
        decay = {name: u.decay for name, u in updates.items() if u.decay is not None}
        carried = {name: u.carried for name, u in updates.items() if u.carried is not None}
        rest = {
            name: updates[name].scale * use.rest / inputs.scale
            for name, use in uses.items()
            if use.rest is not None
        }
        whole = (
            sum(float(in_double(g).square().sum()) for g in inputs.gradients.values())
            if rest
            else 0
        )
        rests = [use.rest for use in uses.values() if use.rest is not None]
        left = sum(float(in_double(each).square().sum()) for each in rests)
        self.rest = (left / whole) ** 0.5 if whole else 0.0
        self.own = {"weight_decay": decay, "momentum": carried, "unattributed": rest}

    def directions(self) -> dict[str, Tensor]:
        """The whole gradient's part of the step, less what is known to be of no example."""
        directions = {}
        for name, gradient in self._inputs.gradients.items():
            rest = self._uses[name].rest
            known = gradient if rest is None else gradient - rest
            directions[name] = self._updates[name].scale * known / self._inputs.scale
        return directions

    def measured(self, batches: list[MicroBatch]) -> "StepParts":
        """The same step, with the use of each gradient measured instead of guessed."""
        uses = {name: measured_use(batches, name, g) for name, g in self._inputs.gradients.items()}
        return StepParts(self._inputs, self._updates, uses)
