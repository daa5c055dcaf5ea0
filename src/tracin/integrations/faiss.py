"""faiss: which rows of an index are worth scoring, where it has too many to score them all."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch

from tracin.checks import positive_int
from tracin.errors import IndexingError, QueryError
from tracin.extras import install_line
from tracin.index.index import Index
from tracin.index.row_scan import SketchedQueries
from tracin.index.store import Store
from tracin.index.store.checksums import body_of, headed
from tracin.schema import Fields, Items, Text, Whole, parsed
from tracin.sketches.flat import WIDEST, Flat

FILE = "candidates/ivf-sq8.faiss"
FORMAT = 2
SCHEMA = Fields(
    {
        "format": Whole(FORMAT, FORMAT),
        "index": Text(),
        "data": Items(Text(), 1),
        "extents": Items(Whole(1), 1),
        "checkpoints": Items(Text(), 1),
        "widest": Whole(1),
        "lists": Whole(1),
    }
)
MEMORY = 1 << 28  # bytes
# faiss asks for at least 39 rows a list to find its centre; more than twice that is of little use.
_FEWEST, _ENOUGH = 39, 80


@final
@dataclass(frozen=True)
class _Head:
    """What the kept vectors are of.

    Attributes:
        index: A fingerprint of how the rows are made.
        data: Fingerprints of the examples, one for each time that rows were added.
        extents: How many rows there were after each time.
        checkpoints: The keys of the checkpoints whose rows lie side by side.
        widest: See `Flat`.
        lists: How many lists there are.
    """

    index: str
    data: tuple[str, ...]
    extents: tuple[int, ...]
    checkpoints: tuple[str, ...]
    widest: int
    lists: int

    @property
    def rows(self) -> int:
        """How many rows were added."""
        return self.extents[-1]


@final
class Nearest:
    """Proposes rows of an index whose vectors have a high or low dot product with a query's.

    A row's vectors at all checkpoints (`tracin.sketches.flat`) lie side by side in a faiss IVF
    index with 8 bits per number. They are unweighted, and weights go on the query: any weights, and
    any of the checkpoints, can be asked for. It is kept in the index's own folder. Give it to
    `tracin.Index.explain` as `finder`: what it proposes is scored there, by the rows or exactly.

    Example:
        >>> import tempfile, torch, tracin
        >>> from tracin.integrations.faiss import Nearest
        >>> model = torch.nn.Linear(3, 2)
        >>> run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[0.1])
        >>> train = torch.randn(50, 3), torch.randint(0, 2, (50,))
        >>> index = run.index(train, tempfile.mkdtemp(), tracin.Projection(dim=64))
        >>> Nearest.open(index)
        Nearest of 50 rows in 1 lists, of which 1 are searched
    """

    def __init__(self, kept: Any, head: _Head, flat: Flat, probes: int) -> None:
        self._kept, self._head, self._flat = kept, head, flat
        self.probes = probes

    @classmethod
    def open(
        cls,
        index: Index,
        *,
        lists: int | None = None,
        probes: int | None = None,
        widest: int = WIDEST,
        memory: int = MEMORY,
    ) -> "Nearest":
        """Read what is kept in the index's folder, add rows that are new, or make it.

        It is made again where the checkpoints, `lists` or `widest` are no longer those that it was
        made with.

        Args:
            index: A complete index.
            lists: How many lists the rows are divided among, by likeness. None keeps those that
                are there, or takes 4 sqrt(rows), as far as there are 39 rows for each.
            probes: How many lists are searched for each side of a query; None for a quarter
                of them, at least 16.
            widest: Numbers for products of factors at a checkpoint, see `tracin.sketches.flat`.
            memory: Bytes that vectors may take while it is made, about; the finished index, a byte
                a number, comes to that.

        Raises:
            IndexingError: faiss is not installed; the index is incomplete; the file is damaged, or
                of another index; lists or probes are not positive whole numbers.
        """
        for name, count in (("lists", lists), ("probes", probes)):
            if count is not None:
                positive_int(count, name, IndexingError, also="None")
        faiss = _faiss()
        store = index.store
        flat = Flat(index.plan.columns, widest)
        found = _read(faiss, store)
        chosen = lists if lists is not None else (found[1].lists if found else None)
        wanted = _head_of(store, widest, _lists_of(store.manifest.rows, chosen))
        with _threads(faiss):
            if found is not None and _goes_on(found[1], wanted):
                kept, before = found[0], found[1].rows
            else:
                kept, before = _trained(faiss, store, flat, wanted.lists, memory), 0
            if before < wanted.rows:
                _add(kept, store, flat, before, memory)
                _write(faiss, store, kept, wanted)
        return cls(kept, wanted, flat, probes or max(16, wanted.lists // 4))

    def __len__(self) -> int:
        return self._head.rows

    def candidates(
        self, queries: SketchedQueries, count: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows that may have the highest, and those that may have the lowest scores.

        Where the lists that are searched hold fewer, more lists are searched.

        Args:
            queries: The queries' rows at each checkpoint, and what each checkpoint weighs.
            count: How many of each.

        Returns:
            Positions, [queries, count] each; -1 where the index has fewer rows.

        Raises:
            QueryError: A checkpoint is asked for that the vectors do not hold.
        """
        vectors = self._vectors(queries)
        with _threads(_faiss()):
            return self._searched(vectors, count), self._searched(-vectors, count)

    def __repr__(self) -> str:
        lists = self._head.lists
        return (
            f"Nearest of {len(self)} rows in {lists} lists, of which {min(self.probes, lists)} are "
            "searched"
        )

    def _vectors(self, queries: SketchedQueries) -> npt.NDArray[np.float32]:
        """Checkpoints that are not asked for weigh nothing."""
        places = {key: at for at, key in enumerate(self._head.checkpoints)}
        if unknown := [key for key in queries.keys if key not in places]:
            raise QueryError(
                f"Candidates were asked for at {', '.join(unknown)}, but their vectors are of the "
                f"checkpoints {', '.join(places)}. Open them again by Nearest.open(index)."
            )
        vectors = torch.zeros(len(queries), len(places), self._flat.width)
        for key, rows, weights in zip(queries.keys, queries.rows, queries.weights, strict=True):
            vectors[:, places[key]] += self._flat.vectors(rows, weights)
        return vectors.flatten(1).numpy()

    def _searched(self, queries: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
        faiss, lists = _faiss(), self._head.lists
        found = np.full((len(queries), count), -1, np.int64)
        left, probes = np.arange(len(queries)), min(self.probes, lists)
        while True:
            how = faiss.SearchParametersIVF(nprobe=probes)
            found[left] = self._kept.search(queries[left], count, params=how)[1]
            left = left[(found[left] < 0).any(1)]
            if not len(left) or probes == lists:
                return found
            probes = min(lists, 4 * probes)


def _head_of(store: Store, widest: int, lists: int) -> _Head:
    manifest = store.manifest
    keys = tuple(manifest.keys)
    return _Head(manifest.index, manifest.data, manifest.extents, keys, widest, lists)


def _goes_on(there: _Head, wanted: _Head) -> bool:
    """Whether what is there only lacks rows."""
    return (there.checkpoints, there.widest, there.lists) == (
        wanted.checkpoints,
        wanted.widest,
        wanted.lists,
    )


def _lists_of(rows: int, chosen: int | None) -> int:
    most = max(1, rows // _FEWEST)
    return min(most, chosen or math.ceil(4 * math.sqrt(rows)))


def _trained(faiss: ModuleType, store: Store, flat: Flat, lists: int, memory: int) -> Any:
    """An empty index, its lists and ranges found from a sample spread over all rows."""
    keys = store.manifest.keys
    width, rows = flat.width * len(keys), store.manifest.rows
    room = max(1, memory // (4 * width))
    count = min(rows, _ENOUGH * lists, max(_FEWEST * lists, room))
    positions = torch.linspace(0, rows - 1, count, dtype=torch.float64).round().long()
    sample = np.empty((count, width), np.float32)
    for at, key in enumerate(keys):
        columns = slice(at * flat.width, (at + 1) * flat.width)
        for start in range(0, count, room):
            chosen = positions[start : start + room]
            part = flat.vectors(store.rows_at(key, chosen))
            sample[start : start + len(chosen), columns] = part.numpy()
    quantizer = faiss.IndexFlatIP(width)
    kept = faiss.IndexIVFScalarQuantizer(
        quantizer, width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    kept.cp.min_points_per_centroid = 1  # a handful of rows is no reason for a warning
    kept.train(sample)
    return kept


def _add(kept: Any, store: Store, flat: Flat, before: int, memory: int) -> None:
    """Add the rows from `before` on, block by block."""
    keys = store.manifest.keys
    step = max(1, memory // (8 * flat.width * len(keys)))
    for span in store.manifest.ranges():
        if span.stop <= before:
            continue
        shards = [store.read_range(key, span) for key in keys]
        for start in range(0, len(span), step):
            stop = min(len(span), start + step)
            parts = [flat.vectors(shard.rows(start, stop)) for shard in shards]
            kept.add(torch.cat(parts, 1).numpy())


def _write(faiss: ModuleType, store: Store, kept: Any, head: _Head) -> None:
    """A line with a checksum of all that follows, a line of JSON, and faiss's bytes."""
    told = json.dumps({"format": FORMAT, **asdict(head)}).encode() + b"\n"
    store.place.write(FILE, headed(told, faiss.serialize_index(kept).tobytes()))


def _read(faiss: ModuleType, store: Store) -> tuple[Any, _Head] | None:
    """What is kept; None where nothing is.

    Raises:
        IndexingError: It is damaged, or of another index.
    """
    if store.place.size(FILE) is None:
        return None
    where = f"{store.place.url}/{FILE}"
    content = store.place.read(FILE)
    try:
        body = body_of(content)
        end = bytes(body[: 1 << 20]).index(b"\n") + 1
        held = SCHEMA(parsed(bytes(body[:end])), "it")
        del held["format"]
        there = _Head(**held)
    except ValueError as error:
        raise IndexingError(
            f"{where} cannot be read ({error}): it was truncated or changed. Delete it, and open "
            "again: it is made from the index's rows."
        ) from error
    here = _head_of(store, there.widest, there.lists)
    if (there.index, there.data, there.extents) != (
        here.index,
        here.data[: len(there.data)],
        here.extents[: len(there.extents)],
    ):
        raise IndexingError(
            f"{where} holds vectors of another index: of other parameters, another projection or "
            "rows with other ids. Delete it, and open again: it is made from the index's rows."
        )
    return faiss.deserialize_index(np.frombuffer(body[end:], np.uint8)), there


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise IndexingError(
            f"Candidates are found by faiss, which is not installed: {install_line('faiss')}."
        ) from error
    return faiss


@contextmanager
def _threads(faiss: ModuleType) -> Iterator[None]:
    """As many threads as torch uses: two pools of all cores would wait for each other."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
