"""Columns as files and for other libraries: Arrow, Parquet, CSV, JSON, HTML."""

import errno
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from tracin.errors import OutputError, QueryError
from tracin.extras import install_line
from tracin.files import replacing
from tracin.results.html_table import html_page
from tracin.results.table import Columns

Writer: TypeAlias = Callable[[Columns, BinaryIO], None]

# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


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
            In CSV a text that a spreadsheet would run as a formula gets a leading '.

    Raises:
        OutputError: Another suffix, or the file cannot be written.
        QueryError: pyarrow is needed, and not installed.
    """
    if not isinstance(path, str | os.PathLike):
        raise OutputError(
            f"Expected a path such as 'scores.parquet' to write a table to; got {path!r}."
        )
    target = Path(path)
    write = writer_for(target)

    def fill(unfinished: Path) -> None:
        with unfinished.open("wb") as file:
            write(columns, file)

    write_whole(target, fill)


def writer_for(path: Path) -> Writer:
    """What writes a file of this suffix.

    Raises:
        OutputError: There is none.
    """
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise OutputError(
            f"{str(path)!r} ends in {path.suffix or 'no suffix'!r}, so it is unclear how to "
            f"write a table there. End it in one of {', '.join(WRITERS)}."
        )
    return write


def as_bytes(columns: Columns, suffix: str) -> bytes:
    r"""What a file of this suffix would hold.

    Args:
        columns: By name, all of one length.
        suffix: One of `WRITERS`.

    Example:
        >>> import numpy as np
        >>> as_bytes({"id": np.array([7]), "label": np.array(["=1+1"])}, ".csv")
        b'"id","label"\n7,"\'=1+1"\n'
    """
    file = io.BytesIO()
    WRITERS[suffix](columns, file)
    return file.getvalue()


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
        is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        way_out = "free some space, or use another path" if is_full else "use another path"
        raise OutputError(
            f"Cannot write {str(target)!r}: {reason}. No partial file is left; {way_out}."
        ) from error


def _parquet(columns: Columns, file: BinaryIO) -> None:
    table = arrow_table(columns)
    from pyarrow import parquet

    parquet.write_table(table, file)


def _csv(columns: Columns, file: BinaryIO) -> None:
    table = arrow_table({_cell(name): _cells(values) for name, values in columns.items()})
    from pyarrow import csv

    csv.write_csv(table, file)


def _json(columns: Columns, file: BinaryIO) -> None:
    lists = {name: [_finite(each) for each in values.tolist()] for name, values in columns.items()}
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    text = json.dumps(rows, ensure_ascii=False, indent=1, default=str)
    file.write(_encoded(f"{text}\n"))


def _html(columns: Columns, file: BinaryIO) -> None:
    file.write(_encoded(html_page(columns)))


def _finite(value: Any) -> Any:
    """JSON has no numbers that are not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cells(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "OUT":
        return values
    cells = np.empty(len(values), dtype=object)
    cells[:] = [_cell(each) for each in values.tolist()]
    return cells


def _cell(value: Any) -> Any:
    """A text that neither runs as a formula nor lacks bytes in UTF-8; anything else as it is."""
    if not isinstance(value, str):
        return value
    text = f"'{value}" if value.startswith(_FORMULA) else value
    return _encoded(text).decode()


def _encoded(text: str) -> bytes:
    # A lone surrogate has no bytes in UTF-8.
    return text.encode("utf-8", errors="backslashreplace")


WRITERS: Mapping[str, Writer] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".json": _json,
    ".html": _html,
}
