"""Which rows of an index may be listed."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracin.errors import QueryError

Rows: TypeAlias = Mapping[str, np.ndarray]
Where: TypeAlias = Any
"""[rows] of bool, of any library, or a function of the rows' table that returns one."""


def rows_where(where: Where, table: Callable[[], Rows], rows: int) -> Tensor | None:
    """[rows], bool; None where all may be.

    Args:
        where: As it was given.
        table: Gives the table of the rows, for a function.
        rows: How many rows there are.

    Raises:
        QueryError: It is something else, or leaves none.
    """
    if where is None:
        return None
    found = where(table()) if callable(where) else where
    left = torch.as_tensor(np.asarray(found))
    if left.dtype != torch.bool or left.shape != (rows,):
        raise QueryError(
            f"where must be a boolean per row, [{rows}], or a function of the table that returns "
            f'one, such as lambda rows: rows["label"] == 3; '
            f"{'it returned' if callable(where) else 'got'} {list(left.shape)} of {left.dtype}."
        )
    if not bool(left.any()):
        raise QueryError(
            f"where leaves none of the {rows} rows: compare with the values in index.table()."
        )
    return left
