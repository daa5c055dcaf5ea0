"""Which method computes each traced parameter's gradients, as checks and audits settle it."""

import logging
from collections.abc import Iterable, Mapping
from typing import final

from torch import Tensor

from tracin.gradients.coverage import Covered, GradientMethod

_log = logging.getLogger(__name__)


@final
class MethodTable:
    """The method of each parameter; a parameter only ever steps down to a slower one.

    Args:
        parameters: The traced ones, by name.
        entries: Where the methods are kept; it may hold other parameters as well.

    Attributes:
        is_settled: Whether it is known of the present batch what the fast method misses.
    """

    def __init__(self, parameters: Mapping[str, Tensor], entries: dict[str, Covered]) -> None:
        self._parameters = parameters
        self.entries = entries
        self.is_settled = True

    def __getitem__(self, name: str) -> GradientMethod:
        return self.entries[name].method

    def begin_with(self, covered: Covered) -> None:
        """The method of every parameter that has none yet."""
        for name in self._parameters:
            self.entries.setdefault(name, covered)

    def by(self, *methods: GradientMethod) -> dict[str, Tensor]:
        """The parameters whose gradients are computed by one of these methods."""
        return {n: p for n, p in self._parameters.items() if self[n] in methods}

    def explain(self, reasons: Mapping[str, Iterable[str]]) -> None:
        """Say how the fast method reads the calls of these parameters."""
        for name, each in reasons.items():
            if self.entries[name].method == GradientMethod.FAST:
                self.entries[name] = Covered(GradientMethod.FAST, ", ".join(each))

    def step_down(self, changed: Mapping[str, Covered]) -> None:
        """Take these methods from now on."""
        self.entries.update(changed)
        for name, covered in changed.items():
            _log.info("%s steps down to a slower gradient method: %s", name, covered)
