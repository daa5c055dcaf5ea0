"""Parquet files that know their own checksum."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from tracin.errors import IndexingError
from tracin.extras import install_line
from tracin.index.store.checksums import BLANK, refuse_changed, with_checksum

SUM = b"xxh3_128"
# How the footer holds a name and a text of 32 bytes (Thrift's compact protocol).
_BEFORE = SUM + bytes((0x18, len(BLANK)))


def parquet_bytes(columns: Mapping[str, np.ndarray], about: Mapping[str, str]) -> bytes:
    """The file of some columns.

    Args:
        columns: By name, of numbers or of texts: [rows] each.
        about: Kept in the footer's metadata.
    """
    pyarrow, parquet = arrow()
    table = pyarrow.table({name: _column(pyarrow, each) for name, each in columns.items()})
    held = io.BytesIO()
    with parquet.ParquetWriter(held, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({**about, SUM.decode(): BLANK.decode()})
    content = held.getvalue()
    return with_checksum(content, _place(content))


def read_parquet(content: bytes) -> Any:
    """The file as pyarrow has it, every byte compared with the checksum first.

    Raises:
        ValueError: It was changed.
    """
    refuse_changed(content, _place(content))
    pyarrow, parquet = arrow()
    try:
        return parquet.ParquetFile(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error


def values_of(column: Any) -> np.ndarray:
    """A column that was read, of whole numbers or texts; a text's kind is object.

    Raises:
        ValueError: It is of another kind, or some values are missing.
    """
    pyarrow, _ = arrow()
    if column.type == pyarrow.string():
        return np.array(column.to_pylist(), dtype=object)
    if column.type != pyarrow.int64() or column.null_count:
        raise ValueError(f"a column of {column.type} is no column of ids")
    found = [
        np.frombuffer(each.buffers()[1], "<i8", len(each), 8 * each.offset)
        for each in column.chunks
        if len(each)
    ]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _column(pyarrow: Any, values: np.ndarray) -> Any:
    """A column in Arrow's memory; `pyarrow.array` would import pandas, for 0.6 to 0.9 s."""
    kind, buffers = pyarrow.string(), []
    if values.dtype == object:
        texts = [each.encode() for each in values.tolist()]
        ends = np.cumsum([0, *map(len, texts)])
        if ends[-1] > np.iinfo(np.int32).max:
            return pyarrow.array(values.tolist())  # which cuts them into several pieces
        buffers = [ends.astype("<i4"), b"".join(texts)]
    else:
        kind, buffers = pyarrow.from_numpy_dtype(values.dtype), [np.ascontiguousarray(values)]
    held = [None, *map(pyarrow.py_buffer, buffers)]
    return pyarrow.Array.from_buffers(kind, len(values), held)


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
            "The table of an index's rows is a Parquet file, but pyarrow is not installed: "
            f"{install_line('index')}."
        ) from error
    return pyarrow, parquet


def _place(content: bytes) -> int:
    at = content.rfind(_BEFORE)
    if at < 0:
        raise ValueError("it holds no checksum: it was truncated, changed, or written by others")
    return at + len(_BEFORE)
