"""Parquet files that know their own checksum."""

import io
from collections.abc import Mapping
from typing import Any

from tracin.errors import IndexingError
from tracin.extras import install_line
from tracin.index.store.checksums import BLANK, refuse_changed, with_checksum

SUM = b"xxh3_128"
# How the footer holds a name and a text of 32 bytes (Thrift's compact protocol).
_BEFORE = SUM + bytes((0x18, len(BLANK)))


def parquet_bytes(columns: Mapping[str, Any], about: Mapping[str, str]) -> bytes:
    """The file of some columns.

    Args:
        columns: By name, as pyarrow takes them.
        about: Kept in the footer's metadata.
    """
    pyarrow, parquet = arrow()
    table = pyarrow.table(dict(columns))
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
