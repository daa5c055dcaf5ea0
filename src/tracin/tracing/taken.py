"""A step that an optimizer took, taken apart: what examples' shares count for, and what is left."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from tracin.precision import in_double
from tracin.tracing.gradient_use import GradientUse, examined
from tracin.tracing.shares import Share
from tracin.tracing.updates import Update


@final
@dataclass(frozen=True, eq=False)
class Taken:
    """What was there just before a step, by parameter.

    Attributes:
        gradients: What the optimizer was given.
        versions: How often each had been changed in place by then.
        options: Those of its group.
        scale: By what a fused optimizer divides the gradients.
    """

    gradients: dict[str, Tensor]
    versions: dict[str, int]
    options: dict[str, Mapping[str, Any]]
    scale: float


@final
class Made:
    """A step taken apart.

    Attributes:
        scales: Parameter -> what examples' shares of its gradient are multiplied by.
        is_untouched: Whether the optimizer was given what the backward passes left.
        rest: The share of the gradient's length that is no example's.
        own: Part of the step that is no example's -> parameter -> its direction.
    """

    def __init__(
        self, taken: Taken, updates: Mapping[str, Update], uses: Mapping[str, GradientUse]
    ) -> None:
        self._taken, self._updates, self._uses = taken, updates, uses
        self.scales = {
            name: update.scale * (uses[name].factor / taken.scale)
            for name, update in updates.items()
        }
        self.is_untouched = all(
            isinstance(use.factor, float) and use.factor == 1.0 and use.rest is None
            for use in uses.values()
        )
        decay = {name: u.decay for name, u in updates.items() if u.decay is not None}
        carried = {name: u.carried for name, u in updates.items() if u.carried is not None}
        rest = {
            name: updates[name].scale * use.rest / taken.scale
            for name, use in uses.items()
            if use.rest is not None
        }
        whole = (
            sum(float(in_double(g).square().sum()) for g in taken.gradients.values()) if rest else 0
        )
        rests = [use.rest for use in uses.values() if use.rest is not None]
        left = sum(float(in_double(each).square().sum()) for each in rests)
        self.rest = (left / whole) ** 0.5 if whole else 0.0
        self.own = {"weight_decay": decay, "momentum": carried, "unattributed": rest}

    def directions(self) -> dict[str, Tensor]:
        """The whole gradient's part of the step, less what is known to be of no example."""
        found = {}
        for name, gradient in self._taken.gradients.items():
            rest = self._uses[name].rest
            known = gradient if rest is None else gradient - rest
            found[name] = self._updates[name].scale * known / self._taken.scale
        return found

    def examined(self, shares: list[Share]) -> "Made":
        """The same step, with what became of each gradient found out in full."""
        uses = {name: examined(shares, name, g) for name, g in self._taken.gradients.items()}
        return Made(self._taken, self._updates, uses)
