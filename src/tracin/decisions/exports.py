"""Decisions as files: CSV, Parquet, JSON, and tasks for Label Studio."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tracin.errors import OutputError
from tracin.results.saving import arrow_table, write_whole

Columns = Mapping[str, np.ndarray]

# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_bytes(columns: Columns) -> bytes:
    r"""The columns as CSV. A text that a spreadsheet would run as a formula gets a leading '.

    Example:
        >>> csv_bytes({"id": np.array([7]), "label": np.array(["=1+1"], dtype=object)})
        b"id,label\r\n7,'=1+1\r\n"
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(columns)
    lists = [values.tolist() for values in columns.values()]
    writer.writerows([_cell(value) for value in row] for row in zip(*lists, strict=True))
    # A lone surrogate has no bytes in UTF-8.
    return out.getvalue().encode("utf-8", errors="backslashreplace")


def json_bytes(columns: Columns) -> bytes:
    """The columns as a JSON list of objects, one per row."""
    lists = [values.tolist() for values in columns.values()]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
    return (json.dumps(rows, indent=1) + "\n").encode()


def parquet_bytes_of(columns: Columns) -> bytes:
    """The columns as a Parquet file."""
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(arrow_table(columns), out)
    return out.getvalue()


def label_studio_bytes(columns: Columns) -> bytes:
    """One task per decision, to import into Label Studio; docs/view.md has its configuration.

    A label that is right or new becomes the annotation's choice; one that is wrong, with no better
    one, leaves the choice open. Format: https://labelstud.io/guide/predictions and /guide/tasks.

    Args:
        columns: As `decided_columns` returns them.
    """
    tasks: list[dict[str, Any]] = []
    lists = {name: values.tolist() for name, values in columns.items()}
    for at, kind in enumerate(lists["decision"]):
        given, new = lists["given_label"][at], lists["new_label"][at]
        label = {"right": given, "relabelled": new}.get(kind)
        results = [_choice("decision", kind)]
        if label is not None:
            results.append(_choice("label", str(label)))
        tasks.append(
            {
                "data": {
                    "id": str(lists["id"][at]),
                    "position": lists["position"][at],
                    "given_label": str(given),
                },
                "annotations": [{"result": results}],
            }
        )
    return (json.dumps(tasks, indent=1) + "\n").encode()


# By suffix of a file.
WRITERS: dict[str, Callable[[Columns], bytes]] = {
    ".csv": csv_bytes,
    ".json": json_bytes,
    ".parquet": parquet_bytes_of,
}


def writer_for(path: Path) -> Callable[[Columns], bytes]:
    """What writes a file of this suffix.

    Raises:
        OutputError: There is none.
    """
    if path.suffix.lower() not in WRITERS:
        raise OutputError(
            f"{str(path)!r} ends in {path.suffix or 'no suffix'!r}, and tables are written as "
            f"{', '.join(WRITERS)}. Give a path with one of these."
        )
    return WRITERS[path.suffix.lower()]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file: whole, or not at all.

    Raises:
        OutputError: The disk refuses.
    """
    write_whole(path, lambda unfinished: unfinished.write_bytes(content))


def _choice(name: str, value: str) -> dict[str, Any]:
    return {
        "from_name": name,
        "to_name": "example",
        "type": "choices",
        "value": {"choices": [value]},
    }


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
