"""Results as columns, aligned on a screen."""

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracin.plain_text import display_width, middle_cut, plain

if TYPE_CHECKING:
    from torch import Tensor

Columns = Mapping[str, np.ndarray]

SCREEN = 80  # columns of a terminal, where the output goes elsewhere
NARROWEST = 20
SHORTEST = 24  # columns of a text that is never cut, such as a number with its interval
NARROW = 3  # what is cut keeps this part of a screen, where that is less
_GAP = "  "


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


def aligned(header: Sequence[str], rows: Sequence[Sequence[Any]], width: int | None = None) -> str:
    """Rows under a header, in columns that fit a screen, numbers to the right.

    Where they do not fit, long texts are cut in the middle, and then the last columns are left out
    and named below the table.

    Args:
        header: The columns' names.
        rows: One value per column each.
        width: How many columns of a terminal there are; None for those of this terminal, or 80
            where the output goes elsewhere.

    Example:
        >>> print(aligned(["id", "loss", "margin"], [["0123456789" * 4, 0.5, -1.0]], 40))
        id                          loss  margin
        012345678901...90123456789   0.5      -1
    """
    room = screen_width() if width is None else width
    names = [plain(name) for name in header]
    cells = [[cell(value) for value in row] for row in rows]
    natural = _natural(names, cells)
    is_number = [
        bool(rows) and all(isinstance(row[at], int | float | np.number) for row in rows)
        for at in range(len(header))
    ]
    widths = _fitted(natural, is_number, room)
    lines = [
        _GAP.join(
            _padded(middle_cut(cell, width), width, right)
            for cell, width, right in zip(line, widths, is_number, strict=False)
        ).rstrip()
        for line in [names, *cells]
    ]
    if len(widths) < len(names):
        without = f"columns that do not fit: {', '.join(names[len(widths) :])}"
        lines += [middle_cut(without, room)]
    return "\n".join(lines)


def aligned_in_parts(
    header: Sequence[str], rows: Sequence[Sequence[Any]], width: int | None = None
) -> str:
    """As `aligned`; columns that do not fit come in further tables, each led by the first column.

    Example:
        >>> print(aligned_in_parts(["method", "LDS", "class"], [["TracIn", "0.9 [0.8 1]", 1]], 22))
        method  LDS
        TracIn  0.9 [0.8 1]
        <BLANKLINE>
        method  class
        TracIn      1
    """
    room = screen_width() if width is None else width
    natural = _natural(list(map(plain, header)), [[cell(value) for value in row] for row in rows])
    parts, start = [], 1
    while start < len(header):
        stop = start + 1
        while stop < len(header) and _line([natural[0], *natural[start : stop + 1]]) <= room:
            stop += 1
        chosen = [0, *range(start, stop)]
        some = [[row[at] for at in chosen] for row in rows]
        parts.append(aligned([header[at] for at in chosen], some, room))
        start = stop
    return "\n\n".join(parts)


def screen_width() -> int:
    """How many columns this terminal has; 80 where the output goes elsewhere."""
    return max(NARROWEST, shutil.get_terminal_size((SCREEN, 24)).columns)


def _natural(names: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    """The widths at which nothing is cut."""
    return [max(map(display_width, column)) for column in zip(names, *cells, strict=True)]


def _fitted(natural: Sequence[int], is_number: Sequence[bool], room: int) -> list[int]:
    """The widths of as many columns as fit, of the first at least."""
    # On a narrow screen one long id must not push out the score next to it.
    shortest = min(SHORTEST, room // NARROW)
    least = [
        width if right or width <= SHORTEST else shortest
        for width, right in zip(natural, is_number, strict=True)
    ]
    count = len(natural)
    while count > 1 and _line(least[:count]) > room:
        count -= 1
    if count == 1:
        return [min(natural[0], room)]
    widths = [max(low, min(width, room)) for low, width in zip(least, natural, strict=True)][:count]
    while _line(widths) > room:
        longest = max((at for at in range(count) if widths[at] > least[at]), key=widths.__getitem__)
        widths[longest] -= 1
    return widths


def _line(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _padded(text: str, width: int, right: bool) -> str:
    blank = " " * (width - display_width(text))
    return blank + text if right else text + blank


def cell(value: Any) -> str:
    """One value as text: four digits of a number, nothing that a terminal obeys."""
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return plain(value)
