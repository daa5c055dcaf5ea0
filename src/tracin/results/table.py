"""Results as columns, aligned on a screen."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracin.plain_text import plain

if TYPE_CHECKING:
    from torch import Tensor

Columns = Mapping[str, np.ndarray]


def numbers(values: "Tensor") -> np.ndarray:
    """A tensor as a NumPy array on the CPU."""
    return values.detach().cpu().numpy()


def distinct(names: Sequence[str]) -> list[str]:
    """The names, each once: of equal ones all but the first get a number.

    Example:
        >>> distinct(["best", "last", "best"])
        ['best', 'last', 'best (2)']
    """
    found: list[str] = []
    for name in names:
        own, number = name, 1
        while own in found or (number > 1 and own in names):
            number += 1
            own = f"{name} ({number})"
        found.append(own)
    return found


def aligned(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under a header, in columns, numbers to the right."""
    names = [plain(name) for name in header]
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    is_number = [
        bool(rows) and all(isinstance(row[at], int | float | np.number) for row in rows)
        for at in range(len(header))
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ).rstrip()
        for line in [names, *cells]
    )


def cell(value: Any) -> str:
    """One value as text: four digits of a number, nothing that a terminal obeys."""
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return plain(value)
