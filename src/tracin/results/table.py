"""Results as columns: aligned on a screen, as an Arrow stream, or as a Parquet file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracin.errors import OutputError, QueryError
from tracin.files import replacing
from tracin.plain_text import plain

if TYPE_CHECKING:
    from torch import Tensor

Columns = Mapping[str, np.ndarray]


def numbers(values: "Tensor") -> np.ndarray:
    """A tensor as a NumPy array on the CPU."""
    return values.detach().cpu().numpy()


def arrow_table(columns: Columns) -> Any:
    """The columns as a pyarrow.Table."""
    try:
        import pyarrow
    except ImportError as error:
        raise QueryError(
            "Results reach files and other libraries through Arrow, but pyarrow is not installed: "
            "pip install 'tracin[cli]'."
        ) from error
    return pyarrow.table(
        # Numbers go over as they lie in memory; a list would make floats doubles, and take seconds.
        {
            name: pyarrow.array(values if values.dtype.kind in "biuf" else list(values))
            for name, values in columns.items()
        }
    )


def save_parquet(columns: Columns, path: str | os.PathLike[str]) -> None:
    """Write the columns to a Parquet file: whole, or not at all."""
    table = arrow_table(columns)
    from pyarrow import parquet

    if not isinstance(path, str | os.PathLike):
        raise OutputError(
            f"Expected a path such as 'scores.parquet' to write a table to; got {path!r}."
        )
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as unfinished:
            parquet.write_table(table, unfinished)
    except (OSError, ValueError) as error:  # a ValueError where the name holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"Cannot write {str(target)!r}: {reason}. No partial file is left; free some space, or "
            "use another path."
        ) from error


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
    cells = [[_cell(value) for value in row] for row in rows]
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


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return plain(value)
