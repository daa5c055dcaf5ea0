"""The ids of an index's rows, in Parquet; one file for each time that rows were added."""

import json

import numpy as np

from tracin.errors import IndexingError
from tracin.index.store.checksums import checksum
from tracin.index.store.parquet import arrow, parquet_bytes, read_parquet, values_of
from tracin.index.store.storage import Storage


def ids_file(span: range, sum_of_ids: str) -> str:
    """Where the ids of these rows are.

    The name depends on the ids, so that two builders with different ids never write one file.
    """
    return f"ids/{span.start:012d}-{span.stop:012d}-{sum_of_ids[:16]}.parquet"


def ids_checksum(ids: np.ndarray) -> str:
    """Equal for equal ids, unlike their files, which releases of pyarrow write differently."""
    if ids.dtype == object:
        return checksum(json.dumps(ids.tolist()).encode())
    return checksum(np.ascontiguousarray(ids, dtype="<i8").tobytes())


def write_ids(place: Storage, span: range, ids: np.ndarray) -> None:
    """Write the ids of these rows."""
    place.write(ids_file(span, ids_checksum(ids)), parquet_bytes({"id": ids}, {}))


def read_ids(place: Storage, span: range, sum_of_ids: str) -> np.ndarray:
    """The ids of these rows: int64 or texts.

    Raises:
        IndexingError: The file is missing or damaged.
    """
    pyarrow, _ = arrow()
    name = ids_file(span, sum_of_ids)
    try:
        ids = values_of(read_parquet(bytes(place.read(name))).read()["id"])
        if len(ids) != len(span) or ids_checksum(ids) != sum_of_ids:
            raise ValueError("its checksum differs")
        return ids
    except (IndexingError, pyarrow.ArrowException, KeyError, TypeError, ValueError, OSError) as one:
        raise IndexingError(
            f"{place.url}/{name} cannot be read ({one}): it is missing or damaged. Build again "
            "with the same data to write the ids again; everything else is kept."
        ) from one
