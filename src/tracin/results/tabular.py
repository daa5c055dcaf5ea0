"""What every result that is a table can do."""

import os
from typing import Any

import numpy as np

from tracin.errors import QueryError
from tracin.printed import Printed
from tracin.results.html_table import html_table
from tracin.results.saving import arrow_table, save_columns


class Tabular(Printed):
    """A result with columns: it prints, saves, shows in notebooks, and goes to table libraries.

    polars, pandas, pyarrow and DuckDB take it as it is, through Arrow: `polars.DataFrame(result)`.
    """

    def columns(self) -> dict[str, np.ndarray]:
        """The columns by name, all of one length."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `columns` to a file: whole, or not at all.

        Args:
            path: Ends in .parquet, .csv, .json or .html, which says how.

        Raises:
            OutputError: Another suffix, or the file cannot be written.
            QueryError: pyarrow is needed, and not installed.
        """
        save_columns(self.columns(), path)

    def to_pandas(self) -> Any:
        """`columns` as a pandas.DataFrame.

        Raises:
            QueryError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise QueryError("to_pandas needs pandas: pip install pandas.") from error
        return pandas.DataFrame(self.columns())

    def to_polars(self) -> Any:
        """`columns` as a polars.DataFrame.

        Raises:
            QueryError: polars or pyarrow is not installed.
        """
        try:
            import polars
        except ImportError as error:
            raise QueryError("to_polars needs polars: pip install polars.") from error
        return polars.DataFrame(arrow_table(self.columns()))

    def _repr_html_(self) -> str:
        return html_table(self.columns())

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return arrow_table(self.columns()).__arrow_c_stream__(requested_schema)
