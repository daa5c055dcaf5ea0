"""Which rows of an index may be hits."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracin.errors import QueryError

Rows: TypeAlias = Mapping[str, np.ndarray]
Keep: TypeAlias = Any
"""[rows] of bool, as any library has it, or a function of the rows' table that gives one."""


def kept(keep: Keep, table: Callable[[], Rows], rows: int) -> Tensor | None:
    """[rows], bool; None where all may be hits.

    Args:
        keep: As it was given.
        table: Gives the table of the rows, for a function.
        rows: How many rows there are.

    Raises:
        QueryError: It is something else, or leaves none.
    """
    if keep is None:
        return None
    found = keep(table()) if callable(keep) else keep
    left = torch.as_tensor(np.asarray(found))
    if left.dtype != torch.bool or left.shape != (rows,):
        raise QueryError(
            f"keep says of each of the {rows} rows whether it may be a hit, [train] of bool, or is "
            f'a function of the table that does, such as lambda rows: rows["label"] == 3; '
            f"{list(left.shape)} of {left.dtype} {'came' if callable(keep) else 'was given'}."
        )
    return left
