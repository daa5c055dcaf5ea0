"""Which way each parameter's per-example gradients are had, and why."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import final

from tracin.plain_text import plain


class GradientMethod(StrEnum):
    """A way to per-example gradients; all are exact, the first is the cheapest."""

    FAST = "fast"
    VMAP = "vmap"
    LOOP = "loop"
    EXCLUDED = "excluded"


@final
@dataclass(frozen=True)
class Covered:
    """How one parameter is covered: the way, and the reason for it in words."""

    way: GradientMethod
    reason: str

    def __str__(self) -> str:
        return f"{self.way}: {self.reason}"


@final
@dataclass(frozen=True)
class Coverage:
    """Every parameter of the model by name, with the way that is taken for it.

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

    def by(self, way: GradientMethod) -> list[str]:
        """The names of the parameters that are covered in this way."""
        return [name for name, covered in self.entries.items() if covered.way == way]

    def __str__(self) -> str:
        rows = [
            (plain(name), covered.way, plain(covered.reason))
            for name, covered in self.entries.items()
        ]
        return "\n".join(_lines(rows))


def _lines(rows: list[tuple[str, GradientMethod, str]]) -> Iterable[str]:
    names = max((len(row[0]) for row in rows), default=0)
    ways = max((len(row[1]) for row in rows), default=0)
    return (f"{name:<{names}}  {way:<{ways}}  {reason}" for name, way, reason in rows)
