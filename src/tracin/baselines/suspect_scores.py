"""One number per example, high for a suspect label: what every baseline returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from tracin.checks import count_within
from tracin.errors import QueryError
from tracin.results.table import aligned
from tracin.results.tabular import Tabular

SHOWN = 10


@final
@dataclass(frozen=True, eq=False, repr=False)
class SuspectScores(Tabular):
    """One number per example, in the data's order; of `top` the most suspect first.

    polars, pandas and pyarrow take it as it is, and `numpy.asarray(scores)` gives the values.

    Attributes:
        name: Which baseline.
        ids: [examples]: the examples' ids.
        values: [examples], float64; high values are suspect.
        positions: [examples]; the examples' positions in the data, or None where all are there in
            the data's order.

    Example:
        >>> import numpy as np
        >>> scores = SuspectScores("Loss", np.array([7, 8, 9]), np.array([0.1, 2.0, 0.3]))
        >>> scores.top(2).ids
        array([8, 9])
    """

    name: str
    ids: np.ndarray
    values: np.ndarray
    positions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False and dtype is not None and np.dtype(dtype) != self.values.dtype:
            raise ValueError(f"the values are {self.values.dtype}; as {dtype} they are a copy")
        return np.array(self.values, dtype) if copy else np.asarray(self.values, dtype)

    def top(self, k: int) -> "SuspectScores":
        """The k most suspect examples, the most suspect first; of equal ones the earlier."""
        return self._picked(self._order()[: self._held(k)])

    def bottom(self, k: int) -> "SuspectScores":
        """The k least suspect examples, in the same order."""
        return self._picked(self._order()[len(self) - self._held(k) :])

    def columns(self) -> dict[str, np.ndarray]:
        """The table, column by column."""
        return {"ids": self.ids, "values": self.values}

    def __str__(self) -> str:
        first = self.top(min(SHOWN, len(self)))
        rows: Sequence[Sequence[Any]] = list(zip(first.ids, first.values, strict=True))
        more = f"\n... {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return f"ranked by {self.name}\n{aligned(['id', self.name], rows)}{more}"

    def _order(self) -> np.ndarray:
        return np.argsort(-self.values, kind="stable")

    def _held(self, k: int) -> int:
        count = int(k) if isinstance(k, np.integer) else k
        return count_within(count, len(self), f"there are {len(self)}", QueryError, "suspects")

    def _picked(self, at: np.ndarray) -> "SuspectScores":
        places = at if self.positions is None else self.positions[at]
        return SuspectScores(self.name, self.ids[at], self.values[at], places)
