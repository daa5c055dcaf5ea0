"""Proposes candidates, so that a search need not score every row of an index."""

from typing import Protocol

import numpy as np

from tracin.index.row_scan import SketchedQueries


class Finder(Protocol):
    """Proposes rows; an index scores them, so that what was not proposed is all that can be missed.

    Such as an approximate nearest-neighbour index of the rows: a row's score with a query is
    mostly the dot product of the two.
    """

    def candidates(self, queries: SketchedQueries, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows that may have the highest, and those that may have the lowest scores.

        Args:
            queries: The queries' rows at each checkpoint, and what each checkpoint weighs.
            count: How many of each; at most the index's rows.

        Returns:
            Positions of rows, [queries, count] int64 each, in any order; -1 where fewer were
            found.
        """
        ...
