"""The ids of an index's rows, in Parquet; one file for each time that rows were added."""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tracin.errors import IndexingError
from tracin.store.place import Place


def ids_file(start: int, stop: int) -> str:
    """Where the ids of these rows are."""
    return f"ids/{start:012d}-{stop:012d}.parquet"


def write_ids(place: Place, start: int, ids: np.ndarray) -> None:
    """Write the ids of rows that begin at `start`."""
    pyarrow, parquet = arrow()
    held = io.BytesIO()
    parquet.write_table(pyarrow.table({"id": ids.tolist()}), held)
    place.write(ids_file(start, start + len(ids)), held.getvalue())


def read_ids(place: Place, extents: Sequence[int]) -> np.ndarray:
    """All ids: int64 or texts."""
    _, parquet = arrow()
    found: list[Any] = []
    for start, stop in pairwise((0, *extents)):
        held = io.BytesIO(bytes(place.read(ids_file(start, stop))))
        found += parquet.read_table(held)["id"].to_pylist()
    is_text = bool(found) and isinstance(found[0], str)
    return np.array(found, dtype=object if is_text else np.int64)


def arrow() -> tuple[Any, Any]:
    """Pyarrow and its Parquet.

    Raises:
        IndexingError: It is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise IndexingError(
            "The table of an index's rows is a Parquet file, but pyarrow is not installed: pip "
            "install 'tracin[index]'."
        ) from error
    return pyarrow, parquet
