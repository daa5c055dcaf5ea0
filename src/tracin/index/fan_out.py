"""A search of an index whose files are divided among workers; their lists are merged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from tracin.engines import Gatherer
from tracin.engines.shares import stretches
from tracin.index.bounds import LimitSearch
from tracin.index.exact import Candidates
from tracin.index.row_scan import RowScan
from tracin.index.search import Best, Search, best
from tracin.index.strongest import Strongest

PARTS = 256  # at most: each sends a list of its own

# Arrays, not tensors: torch shares tensors only while the process that sent them lives.
Lists = list[tuple[np.ndarray, ...]]


@final
@dataclass(frozen=True)
class SearchTask:
    """Searches some of an index's files; any process that sees them may.

    Attributes:
        kind: Which search.
        scan: The rows, and the queries; all workers must see the same manifest.
        k: How many of each.
    """

    kind: type[Search] | type[LimitSearch]
    scan: RowScan
    k: int

    def strongest(self, ranges: Sequence[range] | None = None) -> tuple[Strongest, Strongest]:
        """The strongest among the rows of some ranges; None for all."""
        return self.kind(self.scan, self.k).strongest(ranges)

    def __call__(self, ranges: Sequence[range]) -> Lists:
        """As `strongest`, as arrays, and without a bar of its own."""
        quiet = replace(self, scan=replace(self.scan, progress=False))
        return [_arrays(side) for side in quiet.strongest(ranges)]


def strongest(task: SearchTask, engine: Gatherer | None) -> tuple[Strongest, Strongest]:
    """The strongest of all rows, by this process or by an engine's workers."""
    if engine is None:
        return task.strongest()
    ranges = task.scan.store.manifest.ranges()
    cuts = stretches([len(one) for one in ranges], min(PARTS, len(ranges)))
    parts = [tuple(ranges[cut.start : cut.stop]) for cut in cuts if len(cut)]
    top, bottom = Strongest(task.k, 1), Strongest(task.k, -1)
    for lists in engine.gather(task, parts, task.scan.progress):
        for side, arrays in zip((top, bottom), lists, strict=True):
            values, positions, *shares = (torch.from_numpy(one) for one in arrays)
            side.merge(values, positions, shares[0] if shares else None)
    return top, bottom


def estimated_candidates(scan: RowScan, count: int, engine: Gatherer | None) -> Candidates:
    """The rows with the highest and lowest scores; what all others may reach is not known.

    Curvature of sketched columns is not that of the model, so that no bound of the model's own
    scores follows from them.
    """
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for _, part in scan.parts(Search.smallest(scan.queries)):
        found = strongest(SearchTask(Search, part, count), engine)
        for pieces, side in zip(sides, found, strict=True):
            pieces.append(side.positions.numpy())
    proponents, opponents = (np.concatenate(pieces) for pieces in sides)
    return Candidates(proponents, opponents)


def best_of_all(scan: RowScan, k: int, engine: Gatherer | None) -> tuple[Best, Best]:
    """The k highest and the k lowest scores of each query among all rows, by the index alone."""
    tops: list[Best] = []
    bottoms: list[Best] = []
    for _, part in scan.parts(Search.smallest(scan.queries)):
        top, bottom = best(part, strongest(SearchTask(Search, part, k), engine))
        tops.append(top)
        bottoms.append(bottom)
    return Best.joined(tops), Best.joined(bottoms)


def _arrays(side: Strongest) -> tuple[np.ndarray, ...]:
    if side.values is None:
        raise RuntimeError("no rows were read")
    found = [side.values, side.positions, *([] if side.shares is None else [side.shares])]
    return tuple(one.contiguous().numpy() for one in found)
