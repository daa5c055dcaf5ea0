"""Columns as files and for other libraries: Arrow, Parquet, CSV, JSON, HTML."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tracin.errors import OutputError, QueryError
from tracin.extras import install_line
from tracin.files import replacing
from tracin.results.html_table import html_page
from tracin.results.table import Columns


def arrow_table(columns: Columns) -> Any:
    """The columns as a pyarrow.Table: numbers as they lie in memory, in their own dtype.

    Raises:
        QueryError: pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise QueryError(
            "Results reach files and other libraries through Arrow, but pyarrow is not installed: "
            f"{install_line('cli')}."
        ) from error
    # Ids of a user may be objects of any kind, which go one by one.
    return pyarrow.table(
        {
            name: pyarrow.array(list(values) if values.dtype.hasobject else values)
            for name, values in columns.items()
        }
    )


def save_columns(columns: Columns, path: str | os.PathLike[str]) -> None:
    """Write the columns to a file of the kind that its suffix names: whole, or not at all.

    Args:
        columns: By name, all of one length.
        path: Ends in .parquet, .csv, .json (a list of rows; what is not finite is null) or .html.

    Raises:
        OutputError: Another suffix, or the file cannot be written.
        QueryError: pyarrow is needed, and not installed.
    """
    if not isinstance(path, str | os.PathLike):
        raise OutputError(
            f"Expected a path such as 'scores.parquet' to write a table to; got {path!r}."
        )
    target = Path(path)
    write = WRITERS.get(target.suffix.lower())
    if write is None:
        raise OutputError(
            f"{str(target)!r} ends in {target.suffix or 'no suffix'!r}, so it is unclear how to "
            f"write a table there. End it in one of {', '.join(WRITERS)}."
        )
    write_whole(target, lambda unfinished: write(columns, unfinished))


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Make the folder, and write the file: whole, or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as unfinished:
            write(unfinished)
    except (OSError, ValueError) as error:  # a ValueError where the name holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"Cannot write {str(target)!r}: {reason}. No partial file is left; free some space, or "
            "use another path."
        ) from error


def _parquet(columns: Columns, path: Path) -> None:
    table = arrow_table(columns)
    from pyarrow import parquet

    parquet.write_table(table, path)


def _csv(columns: Columns, path: Path) -> None:
    table = arrow_table(columns)
    from pyarrow import csv

    csv.write_csv(table, path)


def _json(columns: Columns, path: Path) -> None:
    lists = {name: [_plain(each) for each in values.tolist()] for name, values in columns.items()}
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1, default=str) + "\n", "utf-8")


def _html(columns: Columns, path: Path) -> None:
    path.write_text(html_page(columns), "utf-8")


def _plain(value: Any) -> Any:
    """JSON has no numbers that are not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


WRITERS: Mapping[str, Callable[[Columns, Path], None]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".json": _json,
    ".html": _html,
}
