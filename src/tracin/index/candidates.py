"""Scores candidates by the rows that an index keeps of them."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tracin.errors import QueryError
from tracin.index.fan_out import best_of_all
from tracin.index.finder import Finder
from tracin.index.row_scan import RowScan, SketchedQueries
from tracin.index.search import Best, errors_of
from tracin.results.recall import Recall, share_found
from tracin.scoring.top_k import top_k

COMPARED = 8  # queries per call on which a finder is compared with the search of all rows


def proposed(
    finder: Finder, queries: SketchedQueries, count: int, least: int, keep: Tensor | None, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """A finder's candidates that may be listed: [queries, candidates] each, -1 for none.

    A finder does not know `keep`, so the count grows until enough candidates are left.

    Args:
        finder: Who proposes.
        queries: The queries.
        count: The number of candidates to begin with.
        least: The smallest number per query.
        keep: [rows], bool: which may be listed; None for all.
        rows: How many rows there are.

    Raises:
        QueryError: It finds too few, or gives something else than it promises.
    """
    while True:
        sides = finder.candidates(queries, min(count, rows))
        sides = tuple(_checked(one, len(queries), rows) for one in sides)
        left = tuple(_left(one, keep) for one in sides)
        fewest = min(int((one >= 0).sum(1).min()) for one in left)
        if fewest >= least:
            return left[0], left[1]
        if count >= rows:
            raise QueryError(
                f"The finder returned {fewest} candidates that may be listed, but k is {least}. "
                "Let it search more rows, use a smaller k, or leave finder out to score all rows."
            )
        count *= 4


def best_proposed(
    scan: RowScan, proposals: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[Best, Best]:
    """The k strongest of each side's candidates, [queries, candidates], by the index's rows."""
    proponents, opponents = proposals
    return _best(scan, proponents, k, 1), _best(scan, opponents, k, -1)


def finder_recall(scan: RowScan, proposals: tuple[np.ndarray, np.ndarray], k: int) -> Recall:
    """The recall of a finder's candidates on a few queries, against the search of all rows."""
    count = min(COMPARED, len(scan.queries))
    which = torch.arange(count) * len(scan.queries) // count
    some = replace(scan, queries=scan.queries.some(which))
    chosen = proposals[0][which.numpy()], proposals[1][which.numpy()]
    proponents, opponents = (
        share_found(found.positions, true.positions)
        for found, true in zip(
            best_proposed(some, chosen, k), best_of_all(some, k, None), strict=True
        )
    )
    return Recall(k, count, proponents, opponents, "of the first queries, by a search of all rows")


def _best(scan: RowScan, candidates: np.ndarray, k: int, sign: int) -> Best:
    each = 4 * candidates.shape[1] * (2 * scan.plan.width + len(scan.queries))
    parts = scan.parts(each)
    return Best.joined([_best_of(some, candidates[part], k, sign) for part, some in parts])


def _best_of(scan: RowScan, candidates: np.ndarray, k: int, sign: int) -> Best:
    queries = scan.queries
    given = torch.from_numpy(np.sort(candidates, 1))  # of equal scores the first position is first
    unique, places = given.clamp(min=0).unique(return_inverse=True)
    each = torch.arange(len(given))[:, None].expand_as(given)
    shares = torch.empty(*given.shape, len(queries.keys))
    for at, key in enumerate(queries.keys):
        rows = scan.store.rows_at(key, unique)
        scores = scan.plan.columns.scores(rows, queries.rows[at], queries.weights[at])
        shares[:, :, at] = scores[places, each]
    totals = shares.sum(2)
    ranked = (sign * totals).masked_fill(given < 0, -torch.inf)
    order = top_k(ranked, k).places
    positions = given.gather(1, order)
    return Best(
        positions.numpy(),
        totals.gather(1, order),
        shares.gather(1, order[:, :, None].expand(-1, -1, shares.shape[2])),
        errors_of(scan, positions),
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
            f"A finder returns positions of rows: [{queries}, candidates] integers from 0 to "
            f"{rows - 1}, or -1 for none; it returned {list(found.shape)} of {found.dtype}"
            + (f" from {found.min()} to {found.max()}." if found.size else ".")
        )
    return found.astype(np.int64)


def _left(candidates: np.ndarray, keep: Tensor | None) -> np.ndarray:
    """Each row once, and only those that may be listed."""
    ordered = np.sort(candidates, 1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    if keep is not None:
        ordered[~keep.numpy()[ordered]] = -1
    return ordered
