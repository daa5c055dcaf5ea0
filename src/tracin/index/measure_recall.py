"""The recall of an index's estimates: measured on some of its rows, and stored with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from tracin.errors import IndexingError
from tracin.index.bounds import LimitSearch, is_narrow
from tracin.index.exact import Candidates, rescored, strongest_of_all
from tracin.index.fan_out import estimated_candidates
from tracin.index.matched_run import MatchedRun
from tracin.index.row_scan import RowScan
from tracin.index.store import Manifest, Store, sealed_json
from tracin.index.store.storage import Storage
from tracin.index.store.store import RECALL
from tracin.results.recall import Recall, share_found
from tracin.schema import Fields, Items, Number, Text, Whole
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.sketches import Plan
from tracin.sketches.random_numbers import integers, key

HITS, QUERIES = 10, 16
AGAINST = "training rows, by the model's own scores"
HOW = "index.measure_recall() measures it"


SHARE = Number(0, 1)
SCHEMA = Fields(
    {
        "k": Whole(1),
        "queries": Whole(1),
        "proponents": SHARE,
        "opponents": SHARE,
        "certain proponents": Whole(),
        "certain opponents": Whole(),
        "rows": Whole(1),
        "checkpoints": Items(Text(), 1),
        "index": Text(),
    }
)


@final
@dataclass(frozen=True)
class StoredRecall:
    """A recall, with what it was measured for.

    Attributes:
        recall: The figures.
        certain: For how many queries the true proponents, and opponents, were certain.
        rows: How many rows the index had.
        checkpoints: The keys of its checkpoints.
        index: A fingerprint of the index and its data, as they were.
    """

    recall: Recall
    certain: tuple[int, int]
    rows: int
    checkpoints: tuple[str, ...]
    index: str

    def is_of(self, manifest: Manifest, keys: Sequence[str]) -> bool:
        """Whether it holds for these rows at these checkpoints."""
        return self.index == manifest.of and set(self.checkpoints) == set(keys)

    def write(self, place: Storage) -> None:
        """Write it next to the rows; equal bytes for equal figures."""
        content = {
            "k": self.recall.k,
            "queries": self.recall.queries,
            "proponents": self.recall.proponents,
            "opponents": self.recall.opponents,
            "certain proponents": self.certain[0],
            "certain opponents": self.certain[1],
            "rows": self.rows,
            "checkpoints": list(self.checkpoints),
            "index": self.index,
        }
        place.write(RECALL, sealed_json.written(content))

    @classmethod
    def read(cls, place: Storage) -> "StoredRecall | None":
        """The stored recall; None where there is none.

        Raises:
            IndexingError: The file was changed.
        """
        if place.size(RECALL) is None:
            return None
        try:
            held = sealed_json.read(bytes(place.read(RECALL)), SCHEMA)
        except ValueError as error:
            raise IndexingError(
                f"{place.url}/{RECALL} cannot be read ({error}). Delete it, or build again to "
                "measure the recall again."
            ) from error
        return cls(
            Recall(held["k"], held["queries"], held["proponents"], held["opponents"], AGAINST),
            (held["certain proponents"], held["certain opponents"]),
            held["rows"],
            held["checkpoints"],
            held["index"],
        )


def known_recall(store: Store, keys: Sequence[str]) -> tuple[Recall | None, str]:
    """The recall of estimates at these checkpoints, if it is known, and a note for the result."""
    try:
        kept = StoredRecall.read(store.place)
    except IndexingError as error:
        return None, f"recall: unknown; {error}"
    if kept is None:
        return None, f"recall: not measured; {HOW}"
    if kept.rows != store.manifest.rows:
        return None, (
            f"recall: measured when there were {kept.rows} of {store.manifest.rows} rows; {HOW}"
        )
    if kept.index != store.manifest.of:
        return None, f"recall: measured in another index, or with other data; {HOW}"
    if not kept.is_of(store.manifest, keys):
        return None, f"recall: measured at other checkpoints than these; {HOW}"
    return kept.recall, str(kept.recall)


def is_recall_known(store: Store) -> bool:
    """Whether a recall at all checkpoints of a store, as it is now, is kept."""
    try:
        kept = StoredRecall.read(store.place)
    except IndexingError:
        return False
    return kept is not None and kept.is_of(store.manifest, store.manifest.keys)


def chosen_rows(seed: int, rows: int, count: int) -> np.ndarray:
    """Some rows, always the same of one seed: [at most count], rising."""
    if count >= rows:
        return np.arange(rows)
    drawn = integers(key(seed, "recall"), 4 * count, rows)
    _, first = np.unique(drawn, return_index=True)
    return np.sort(drawn[np.sort(first)[:count]])


def without(positions: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Each query's results, [queries, k + 1] -> [queries, k], without itself or the last one."""
    is_own = positions == own[:, None]
    is_own[~is_own.any(1), -1] = True
    return positions[~is_own].reshape(len(positions), -1)


def _bounded(scan: RowScan, k: int, each: int) -> tuple[Candidates, list[np.ndarray]]:
    """Candidates by their bounds, `each` per result, and the estimated k strongest on each side."""
    count = min(scan.store.manifest.rows, k * each)
    found = [
        LimitSearch(part, count + 1).with_estimates(k)
        for _, part in scan.parts(LimitSearch.smallest(scan.queries))
    ]
    candidates = Candidates.bounded(
        [(top, bottom) for top, bottom, _, _ in found],
        count,
        is_sure=not is_narrow(scan.plan.columns),
    )
    estimated = [
        np.concatenate([side.positions.numpy() for side in sides])
        for sides in list(zip(*found, strict=True))[2:]
    ]
    return candidates, estimated


@final
@dataclass(frozen=True)
class RecallRequest:
    """What to measure.

    Attributes:
        k: Results per query and side.
        queries: The number of rows that serve as queries.
        candidates: Rows scored exactly per result and query.
        memory: Bytes that blocks of scores and rows may take, about.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.
    """

    k: int
    queries: int
    candidates: int
    memory: int
    batch_size: BatchSize
    progress: bool | None


def measured(store: Store, plan: Plan, run: MatchedRun, request: RecallRequest) -> Recall:
    """Measure the recall, and store it unless the run has another preconditioner than the rows."""
    examples = run.examples()
    k, rows = request.k, store.manifest.rows
    own = chosen_rows(plan.seed, rows, request.queries)
    some = examples.subset(own.tolist())
    queries = run.sketched(some, request.batch_size, request.progress)
    scan = RowScan(store, plan, queries, request.memory, progress=request.progress)
    memory, size = request.memory, checked_size(request.batch_size)
    walk, progress = run.checkpoint_pass(), request.progress
    if run.has_row_curvature:
        # No bound says which rows may be left out, so that the model scores them all.
        found = estimated_candidates(scan, k + 1, None)
        estimated = [found.proponents, found.opponents]
        true = strongest_of_all(walk, examples, some, k + 1, memory, size, progress)
    else:
        candidates, estimated = _bounded(scan, k + 1, request.candidates)
        true = rescored(walk, examples, some, candidates, k + 1, memory, size, progress)
    shares, certain = [], []
    for rough, exact in zip(estimated, true, strict=True):
        shares.append(share_found(without(rough, own), without(exact.positions, own)))
        certain.append(0 if exact.is_certain is None else int(exact.is_certain.sum()))
    recall = Recall(k, len(own), shares[0], shares[1], AGAINST)
    if run.is_as_rows:
        keys = queries.merged().keys
        StoredRecall(recall, (certain[0], certain[1]), rows, keys, store.manifest.of).write(
            store.place
        )
    return recall
