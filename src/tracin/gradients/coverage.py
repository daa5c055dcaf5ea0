"""How each parameter's per-example gradients are computed, and why."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import final

from tracin.plain_text import plain
from tracin.printed import Printed


class GradientMethod(StrEnum):
    """How per-example gradients are computed; all are exact, the first is the cheapest."""

    FAST = "fast"
    VMAP = "vmap"
    LOOP = "loop"
    EXCLUDED = "excluded"


@final
@dataclass(frozen=True)
class Covered:
    """How one parameter is covered: the method, and the reason for it in words."""

    method: GradientMethod
    reason: str

    def __str__(self) -> str:
        return f"{self.method}: {self.reason}"


@final
@dataclass(frozen=True, repr=False)
class Coverage(Printed):
    """Every parameter of the model by name, with its method.

    Printing it gives a table; `entries` is the mapping behind it.

    Example:
        >>> coverage = Coverage({"weight": Covered(GradientMethod.FAST, "linear"),
        ...                      "bias": Covered(GradientMethod.EXCLUDED, "not among parameters=")})
        >>> print(coverage)
        weight  fast      linear
        bias    excluded  not among parameters=
        >>> coverage.by(GradientMethod.FAST)
        ['weight']
    """

    entries: Mapping[str, Covered]

    def by(self, method: GradientMethod) -> list[str]:
        """The names of the parameters that are covered by this method."""
        return [name for name, covered in self.entries.items() if covered.method == method]

    def __str__(self) -> str:
        rows = [
            (plain(name), covered.method, plain(covered.reason))
            for name, covered in self.entries.items()
        ]
        return "\n".join(_lines(rows))


def _lines(rows: list[tuple[str, GradientMethod, str]]) -> Iterable[str]:
    names = max((len(row[0]) for row in rows), default=0)
    methods = max((len(row[1]) for row in rows), default=0)
    return (f"{name:<{names}}  {method:<{methods}}  {reason}" for name, method, reason in rows)
