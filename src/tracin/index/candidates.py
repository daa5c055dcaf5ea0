"""Scores candidates by the rows that an index keeps of them."""

import numpy as np
import torch
from torch import Tensor

from tracin.errors import QueryError
from tracin.index.finder import Finder
from tracin.index.row_scan import RowScan, SketchedQueries
from tracin.index.search import Best, errors_of
from tracin.scoring.top_k import top_k


def proposed(
    finder: Finder, asked: SketchedQueries, count: int, least: int, keep: Tensor | None, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """A finder's candidates that may be hits: [queries, candidates] each, -1 where there are fewer.

    A finder knows nothing of `keep`, so more are asked for until enough of them are left.

    Args:
        finder: Who proposes.
        asked: The queries.
        count: How many to ask for.
        least: How many each query must have.
        keep: [rows], bool: which may be hits; None for all.
        rows: How many rows there are.

    Raises:
        QueryError: It finds too few, or gives something else than it promises.
    """
    while True:
        sides = finder.candidates(asked, min(count, rows))
        sides = tuple(_checked(one, len(asked), rows) for one in sides)
        left = tuple(_left(one, keep) for one in sides)
        fewest = min(int((one >= 0).sum(1).min()) for one in left)
        if fewest >= least:
            return left[0], left[1]
        if count >= rows:
            raise QueryError(
                f"The finder gave {fewest} candidates that may be hits, but {least} are asked for. "
                "Let it look at more of the rows, ask for a smaller k, or leave finder out: then "
                "every row is scored."
            )
        count *= 4


def best_of(reading: RowScan, candidates: np.ndarray, k: int, sign: int) -> Best:
    """The best k of some candidates [queries, candidates], by the index's rows; -1 is nobody."""
    each = 4 * candidates.shape[1] * (2 * reading.plan.width + len(reading.asked))
    return Best.joined(
        [_best_of(some, candidates[part], k, sign) for part, some in reading.parts(each)]
    )


def _best_of(reading: RowScan, candidates: np.ndarray, k: int, sign: int) -> Best:
    asked = reading.asked
    given = torch.from_numpy(np.sort(candidates, 1))  # of equal scores the first position is first
    unique, places = given.clamp(min=0).unique(return_inverse=True)
    queries = torch.arange(len(given))[:, None].expand_as(given)
    shares = torch.empty(*given.shape, len(asked.keys))
    for at, key in enumerate(asked.keys):
        rows = reading.store.rows_at(key, unique)
        scores = reading.plan.columns.scores(rows, asked.rows[at], asked.weights[at])
        shares[:, :, at] = scores[places, queries]
    totals = shares.sum(2)
    ranked = (sign * totals).masked_fill(given < 0, -torch.inf)
    order = top_k(ranked, k).places
    positions = given.gather(1, order)
    return Best(
        positions.numpy(),
        totals.gather(1, order),
        shares.gather(1, order[:, :, None].expand(-1, -1, shares.shape[2])),
        errors_of(reading, positions),
    )


def _checked(candidates: np.ndarray, queries: int, rows: int) -> np.ndarray:
    found = np.asarray(candidates)
    if (
        found.ndim != 2
        or len(found) != queries
        or not np.issubdtype(found.dtype, np.integer)
        or (found.size and (found.min() < -1 or found.max() >= rows))
    ):
        raise QueryError(
            f"A finder gives positions of rows, [{queries} queries, candidates] whole numbers from "
            f"0 to {rows - 1}, or -1 for nobody; it gave {list(found.shape)} of {found.dtype}"
            + (f" from {found.min()} to {found.max()}." if found.size else ".")
        )
    return found.astype(np.int64)


def _left(candidates: np.ndarray, keep: Tensor | None) -> np.ndarray:
    """Each row once, and only those that may be hits."""
    ordered = np.sort(candidates, 1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    if keep is not None:
        ordered[~keep.numpy()[ordered]] = -1
    return ordered
