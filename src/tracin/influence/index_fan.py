"""A search of an index whose files are divided among workers; their lists are merged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.engines import Gatherer
from tracin.engines.shares import stretches
from tracin.influence.index_limits import LimitSearch
from tracin.influence.index_search import Asked, Search
from tracin.influence.index_strongest import Strongest
from tracin.sketches import Plan
from tracin.store import Manifest, Store, place_of

PARTS = 256  # at most: each sends a list of its own

# Arrays, not tensors: torch's own way between processes ends with the process that sent them.
Lists = list[tuple[np.ndarray, ...]]


@final
@dataclass(frozen=True)
class Scan:
    """Searches some of an index's files; any process that sees them may.

    Attributes:
        kind: Which search.
        url: Where the index is.
        manifest: What it holds: all workers must see the same.
        plan: How its rows are laid out.
        asked: The queries.
        k: How many of each.
        keep: [rows], bool: which may be found; None for all.
        memory: Bytes that a block of scores may take.
    """

    kind: type[Search] | type[LimitSearch]
    url: str
    manifest: Manifest
    plan: Plan
    asked: Asked
    k: int
    keep: Tensor | None
    memory: int

    def strongest(
        self, progress: bool | None, ranges: Sequence[range] | None = None
    ) -> tuple[Strongest, Strongest]:
        """The strongest among the rows of some ranges; None for all."""
        store = Store(place_of(self.url), self.manifest)
        search = self.kind(store, self.plan, self.asked, self.k, self.keep, self.memory, progress)
        return search.strongest(ranges)

    def __call__(self, ranges: Sequence[range]) -> Lists:
        """As `strongest`, as arrays."""
        return [_arrays(side) for side in self.strongest(False, ranges)]


def strongest(
    scan: Scan, engine: Gatherer | None, progress: bool | None
) -> tuple[Strongest, Strongest]:
    """The strongest of all rows, by this process or by an engine's workers."""
    if engine is None:
        return scan.strongest(progress)
    ranges = scan.manifest.ranges()
    cuts = stretches([len(one) for one in ranges], min(PARTS, len(ranges)))
    parts = [tuple(ranges[cut.start : cut.stop]) for cut in cuts if len(cut)]
    top, bottom = Strongest(scan.k, 1), Strongest(scan.k, -1)
    for lists in engine.gather(scan, parts, progress):
        for side, arrays in zip((top, bottom), lists, strict=True):
            values, positions, *shares = (torch.from_numpy(one) for one in arrays)
            side.merge(values, positions, shares[0] if shares else None)
    return top, bottom


def _arrays(side: Strongest) -> tuple[np.ndarray, ...]:
    if side.values is None:
        raise RuntimeError("no rows were read")
    found = [side.values, side.positions, *([] if side.shares is None else [side.shares])]
    return tuple(one.contiguous().numpy() for one in found)
