"""The gradient index: training gradients sketched once, kept on the disk, and asked ever after."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.checks import count_within, positive_int
from tracin.data import Examples, open_examples
from tracin.engines import Gatherer
from tracin.errors import IndexingError, QueryError
from tracin.guards import guarded
from tracin.index.bounds import LimitSearch, is_narrow
from tracin.index.candidates import best_of, proposed
from tracin.index.contents import checkpoint_keys, plan_in, refuse_other_parameters
from tracin.index.data import (
    losses_at,
    refuse_other_data,
    refuse_other_losses,
)
from tracin.index.exact import cut_at, exact_hits
from tracin.index.fan_out import Scan, strongest
from tracin.index.finder import Finder
from tracin.index.info import described
from tracin.index.measure_recall import (
    AGAINST,
    HITS,
    QUERIES,
    Kept,
    chosen_rows,
    told,
    without,
)
from tracin.index.row_scan import RowScan, SketchedQueries
from tracin.index.rows import RowMaker, group_weights
from tracin.index.search import Best, Search, best, scores_of
from tracin.index.store import Removed, Report, Store, Unit, delete_stale, verify_files
from tracin.index.strongest import Strongest
from tracin.index.table import add_weights, table_of, weights_of
from tracin.index.where import Where, rows_where
from tracin.results.explanations import Explanations, TopInfluences
from tracin.results.recall import Recall, share_found
from tracin.results.table import distinct
from tracin.run import Run, open_data, rows_pass
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.sharding import is_sharded

MEMORY = 1 << 28  # bytes
CANDIDATES = 5  # for each hit that is wanted, so many are scored exactly
COMPARED = 8  # queries of each call on which a finder is compared with the search of all rows


@final
class Index:
    """Sketched gradients of training examples at every checkpoint, in a folder or behind a URL.

    `tracin.TracIn.index` builds one, and `Index.open` opens it again. A query costs one small pass
    over the query at each checkpoint, and one reading of the rows.

    Attributes:
        store: The files.
        run: What puts queries through the model; None where the index was opened without.
        plan: How gradients became rows.

    Example:
        >>> import tempfile, torch, tracin
        >>> model = torch.nn.Linear(3, 2)
        >>> run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[0.1])
        >>> train = torch.randn(50, 3), torch.randint(0, 2, (50,))
        >>> index = run.index(train, tempfile.mkdtemp(), tracin.Projection(dim=64))
        >>> query = train[0][:1], train[1][:1]
        >>> exact, found = run.explain(train, query, k=2), index.explain(query, k=2)
        >>> bool((exact.top(2).positions == found.top(2).positions).all())
        True
    """

    def __init__(
        self, store: Store, run: Run | None = None, train: Any = None, *, is_agreed: bool = False
    ) -> None:
        self.store, self.run, self._train = store, run, train
        self._is_agreed = is_agreed  # whether the run and the data are known to be the build's
        self.plan = plan_in(store)

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, run: Run | None = None, train: Any = None
    ) -> "Index":
        """Open an index, complete or not.

        Args:
            folder: A folder, or any URL that fsspec knows.
            run: The `tracin.TracIn` that puts queries through the model, at all or some of the
                index's checkpoints; these weigh what they do in this run, whatever they did when
                the index was built. Without it the index tells what it holds, and no more.
            train: The training data that it was built from, for exact scores. With it, a run with
                another loss, or another model of the same shapes, is refused.

        Raises:
            IndexingError: There is none, or it cannot be read.
        """
        return cls(Store.open(folder), run, train)

    def with_run(self, run: Run) -> "Index":
        """The same index for another run: other weights, fewer checkpoints, a preconditioner."""
        return Index(self.store, run, self._train)

    def __len__(self) -> int:
        return self.store.manifest.rows

    @property
    def ids(self) -> np.ndarray:
        """The ids of the rows: [train]."""
        return self.store.ids()

    @guarded
    def explain(
        self,
        queries: Any,
        k: int = 10,
        *,
        exact: bool = False,
        where: Where = None,
        candidates: int = CANDIDATES,
        finder: Finder | None = None,
        engine: Gatherer | None = None,
        memory: int = MEMORY,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Explanations:
        """The k strongest proponents and opponents of each query, by the rows of the index.

        Scores are estimates, each with its error, and the answer tells the recall of such answers.
        With `exact`, those rows that may be among the strongest are scored again by the model;
        `TopInfluences.is_certain` then tells whether no other row is expected to belong there:
        whether the k-th exact score is beyond every other row's estimate and 3 standard errors.

        Args:
            queries: The examples whose loss is explained.
            k: How many of each.
            exact: Whether to score candidates again by the model itself, on the training data that
                the index was built from or opened with.
            where: Which examples may be in the lists: [train] of bool, from any column of your own,
                or a function of `index.table()`, such as `lambda rows: rows["is_right"] == 1`.
            candidates: With `exact` or a finder, how many candidates there are for each hit.
            finder: Who proposes candidates; None looks at every row. Its recall is measured on some
                of the queries, each time.
            engine: Whose workers divide the rows, of `tracin.engines`; None for this process. They
                must see the index's files.
            memory: Bytes that blocks of scores and rows may take, about.
            batch_size: "auto", or how many examples go through the model at once.
            progress: None shows a bar on a terminal alone.

        Raises:
            IndexingError: The index is incomplete, or of another model, loss, data or other
                checkpoints; the engine's workers failed.
            QueryError: k is out of range, `where` is not one truth per row, the index knows no run,
                or for `exact` no training data, or a finder gave too few.
            NonFiniteError: A query's loss or gradient is NaN or infinite.
        """
        run = self._known_run()
        left = rows_where(where, self.table, len(self))
        count = len(self) if left is None else int(left.sum())
        _check_hits(k, count)
        positive_int(candidates, "candidates", QueryError)
        if finder is not None and engine is not None:
            raise QueryError(
                "A finder proposes candidates in this process, and an engine's workers look at "
                "every row. Give finder= or engine=, not both."
            )
        if engine is not None and not hasattr(engine, "gather"):
            raise QueryError(
                f"{type(engine).__name__} cannot divide the rows of an index: it has no gather. "
                "Use tracin.engines.Processes or RayCluster, or leave engine out."
            )
        examples = self._examples() if exact else None
        given = open_data(run, queries, "queries")
        asked = self._asked(given, batch_size)
        reading = RowScan(self.store, self.plan, asked, memory, left, progress)
        notes: list[str] = []
        recall, proposals = None, None
        if finder is not None:
            proposals = proposed(finder, asked, k * candidates, k, left, len(self))
            recall = self._compared(reading, proposals, k)
            notes.append(f"finder: {recall}")
        if examples is not None:
            if proposals is not None:
                chosen = _Candidates(*proposals)
            else:
                wanted = min(count, k * candidates)
                searched = [
                    strongest(Scan(LimitSearch, part, wanted + 1), engine)
                    for _, part in reading.parts(LimitSearch.smallest(asked))
                ]
                chosen = self._limited(searched, wanted)
            sides = self._rescored(examples, given, chosen, k, reading, batch_size)
        else:
            found = (
                self._best(reading, k, engine)
                if proposals is None
                else self._proposed(reading, proposals, k)
            )
            ids = self.ids
            sides = found[0].to_hits(ids), found[1].to_hits(ids)
            if run.preconditioner is None:
                known, said = told(self.store, asked.keys)
                recall = recall or known
                notes.append(said)
            else:
                notes.append(
                    "recall: not known under a preconditioner; index.measure_recall() tells"
                )
        names = tuple(run.checkpoints[number].name for number in asked.numbers)
        return Explanations(given.ids, sides[0], sides[1], names, recall, tuple(notes))

    @guarded
    def measure_recall(
        self,
        *,
        k: int = HITS,
        queries: int = QUERIES,
        candidates: int = CANDIDATES,
        memory: int = MEMORY,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Recall:
        """How many of the true k strongest the index finds; kept beside the rows.

        Some rows are queries, each left out of its own hits. What the sketched rows say is compared
        with the model's exact scores of candidates. Where these were too few to be certain of the
        true hits, the recall may be lower than it seems; `recall.json` tells for how many queries
        they were certain.

        Args:
            k: How many hits of each query.
            queries: How many rows are queries.
            candidates: How many rows are scored exactly for each hit and query.
            memory: Bytes that blocks of scores and rows may take, about.
            batch_size: "auto", or how many examples go through the model at once.
            progress: None shows a bar on a terminal alone.

        Raises:
            IndexingError: The index is incomplete, or cannot be written to.
            QueryError: The index knows no run or no training data, or k or queries is out of range.
        """
        _check_hits(k, len(self) - 1)
        positive_int(queries, "queries", QueryError)
        positive_int(candidates, "candidates", QueryError)
        examples = self._examples()
        own = chosen_rows(self.plan.seed, len(self), queries)
        some = examples.subset(own.tolist())
        asked = self._asked(some, batch_size)
        reading = RowScan(self.store, self.plan, asked, memory, progress=progress)
        wanted = min(len(self), (k + 1) * candidates)
        found = [
            LimitSearch(part, wanted + 1).with_estimates(k + 1)
            for _, part in reading.parts(LimitSearch.smallest(asked))
        ]
        limited = self._limited([(top, bottom) for top, bottom, _, _ in found], wanted)
        true = self._rescored(examples, some, limited, k + 1, reading, batch_size)
        estimated = (
            np.concatenate([side.positions.numpy() for side in sides])
            for sides in list(zip(*found, strict=True))[2:]
        )
        shares, certain = [], []
        for rough, exact in zip(estimated, true, strict=True):
            shares.append(share_found(without(rough, own), without(exact.positions, own)))
            certain.append(0 if exact.is_certain is None else int(exact.is_certain.sum()))
        recall = Recall(k, len(own), shares[0], shares[1], AGAINST)
        of, keys = self.store.manifest.of, asked.merged().keys
        if self._known_run().preconditioner is None:
            Kept(recall, (certain[0], certain[1]), len(self), keys, of).write(self.store.place)
        return recall

    @guarded
    def influence(
        self,
        queries: Any,
        *,
        memory: int = MEMORY,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """The influence of every row on every query: [train, queries], estimated without bias.

        Args:
            queries: As for `explain`, like all that follow.
            memory: Bytes that blocks may take, about.
            batch_size: "auto", or how many examples go through the model at once.
            progress: None shows a bar on a terminal alone.

        Raises:
            IndexingError: As from `explain`.
        """
        given = open_data(self._known_run(), queries, "queries")
        asked = self._asked(given, batch_size)
        return scores_of(RowScan(self.store, self.plan, asked, memory, progress=progress))

    def self_influence(self) -> Tensor:
        """Each row's influence on itself, exact: [train].

        By the weights of the index's run, or, without a run, by those of the build.

        Raises:
            IndexingError: The index is incomplete, or has other checkpoints than the run.
            QueryError: The run has a preconditioner: an index keeps lengths of plain gradients.
        """
        if self.run is not None and self.run.preconditioner is not None:
            raise QueryError(
                "An index keeps the lengths of plain gradients, and its run has preconditioner="
                f"{self.run.preconditioner!r}. Use run.self_influence(train), or "
                "index.with_run(...) of a run without one."
            )
        self.store.refuse_missing()
        total = torch.zeros(len(self), dtype=torch.float64)
        for key, weights in self._weights().items():
            for span in self.store.manifest.ranges():
                found = self.store.columns(Unit(key, span.start, span.stop))
                norms = found["squared_norms"].double()
                total[span.start : span.stop] += norms @ torch.tensor(weights, dtype=torch.float64)
        return total.float()

    def table(self) -> dict[str, np.ndarray]:
        """The rows: id, label, is_right and loss at the last checkpoint, self-influence.

        `label` is -1 where the loss knows none; `is_right` is 1 where the model's highest score was
        the label's, 0 where not, -1 where unknown. `self_influence` is exact, by the weights of the
        build; `self_influence_sketched` is what the rows make of it. polars and pandas make a frame
        of it; a complete index keeps the same in `table.parquet`.

        Raises:
            IndexingError: The index is incomplete, or a file is damaged.
        """
        return table_of(self.store)

    def drop(self, checkpoint: str) -> "Index":
        """The index without a checkpoint, by its name; its files stay until `gc`.

        It has no run, since this index's had the checkpoint: give one by `with_run`.

        Of several with one name, the second is called "NAME (2)", and so on, as in results.

        Raises:
            IndexingError: There is none of this name.
        """
        entries = self.store.manifest.checkpoints
        names = distinct([each.name for each in entries])
        if checkpoint not in names or len(entries) == 1:
            raise IndexingError(
                "One checkpoint of several can be dropped by its name; the index has "
                f"{', '.join(names)}, and {checkpoint!r} was given."
            )
        dropped = entries[names.index(checkpoint)]
        return Index(self.store.drop(dropped.key, dropped.name), None, self._train)

    def verify(self) -> Report:
        """Read every byte, and compare with the checksums."""
        return verify_files(self.store)

    def gc(self) -> Removed:
        """Delete abandoned unfinished files, and those of dropped checkpoints.

        Others may build meanwhile: an unfinished file goes only if its process, on this machine, is
        gone, or if it is more than an hour old, while writing one takes moments.
        """
        return delete_stale(self.store)

    def __str__(self) -> str:
        return described(self.store)

    def _known_run(self) -> Run:
        if self.run is None:
            raise QueryError(
                "Queries go through a model, and this index was opened without one. Give "
                "tracin.Index.open(folder, run=run), the tracin.TracIn with its checkpoints."
            )
        return self.run

    def _asked(self, queries: Examples, batch_size: BatchSize) -> SketchedQueries:
        """The queries' rows at each checkpoint of the run, and what each weighs."""
        run = self._known_run()
        keys = self._keys(run)
        weights = self._weights_of(run)
        refuse_other_parameters(self.store, run)
        if self._train is not None and not self._is_agreed:
            self._examples()
        entries = [self.store.manifest.entry(key) for key in keys]
        names = [one.name for one in run.checkpoints]
        numbers = [entry.number for entry in entries]
        size = checked_size(batch_size)
        with RowMaker(rows_pass(run), self.plan, numbers, names, size) as maker:
            known = {
                key: maker.sketched_queries(keys.index(key), queries) for key in dict.fromkeys(keys)
            }
        made = [known[key] for key in keys]
        return SketchedQueries(
            tuple(keys),
            tuple(range(len(keys))),
            tuple(one.rows for one in made),
            tuple(weights),
            tuple(one.squared_norms for one in made),
        )

    def _best(self, reading: RowScan, k: int, engine: Gatherer | None) -> tuple[Best, Best]:
        """The strongest of all rows, by the index alone."""
        tops: list[Best] = []
        bottoms: list[Best] = []
        for _, part in reading.parts(Search.smallest(reading.asked)):
            top, bottom = best(part, strongest(Scan(Search, part, k), engine))
            tops.append(top)
            bottoms.append(bottom)
        return Best.joined(tops), Best.joined(bottoms)

    def _proposed(
        self, reading: RowScan, proposals: tuple[np.ndarray, np.ndarray], k: int
    ) -> tuple[Best, Best]:
        """The strongest of some rows, by the index alone."""
        return best_of(reading, proposals[0], k, 1), best_of(reading, proposals[1], k, -1)

    def _limited(self, found: Sequence[tuple[Strongest, Strongest]], wanted: int) -> "_Candidates":
        """So many candidates of each query on each side, and what all others may be."""
        is_sure = not is_narrow(self.plan.columns)
        tops, bottoms = zip(
            *[[cut_at(side, wanted, is_sure) for side in sides] for sides in found], strict=True
        )
        return _Candidates(
            np.concatenate([positions for positions, _ in tops]),
            np.concatenate([positions for positions, _ in bottoms]),
            (torch.cat([one for _, one in tops]), torch.cat([one for _, one in bottoms])),
        )

    def _rescored(
        self,
        examples: Examples,
        queries: Examples,
        candidates: "_Candidates",
        k: int,
        reading: RowScan,
        batch_size: BatchSize,
    ) -> tuple[TopInfluences, TopInfluences]:
        """The strongest of the candidates, by the model."""
        return exact_hits(
            rows_pass(self._known_run()),
            examples,
            queries,
            (candidates.proponents, candidates.opponents),
            candidates.bounds,
            k,
            reading.memory,
            checked_size(batch_size),
            reading.progress,
        )

    def _compared(
        self, reading: RowScan, proposals: tuple[np.ndarray, np.ndarray], k: int
    ) -> Recall:
        """A finder's recall on some of the queries, against the search of all rows."""
        asked = reading.asked
        count = min(COMPARED, len(asked))
        which = torch.arange(count) * len(asked) // count
        some = replace(reading, asked=asked.some(which))
        given = proposals[0][which.numpy()], proposals[1][which.numpy()]
        found, true = self._proposed(some, given, k), self._best(some, k, None)
        shares = [
            share_found(one.positions, other.positions)
            for one, other in zip(found, true, strict=True)
        ]
        return Recall(k, count, shares[0], shares[1], "of the queries, by a search of all rows")

    def _keys(self, run: Run) -> list[str]:
        keys = checkpoint_keys(run)
        there = {entry.key for entry in self.store.manifest.checkpoints}
        unknown = [
            one.name for one, key in zip(run.checkpoints, keys, strict=True) if key not in there
        ]
        if unknown:
            names = ", ".join(entry.name for entry in self.store.manifest.checkpoints)
            raise IndexingError(
                f"The index has no rows at {', '.join(unknown)}: it was built at {names}, and a "
                "checkpoint is known by its weights. Give those, or build again with the new ones."
            )
        return keys

    def _weights(self) -> dict[str, list[float]]:
        """What each group weighs at each checkpoint that counts, by the checkpoint's key."""
        if self.run is None:
            return weights_of(self.store.manifest)
        run = self.run
        found: dict[str, list[float]] = {}
        for key, weights in zip(self._keys(run), self._weights_of(run), strict=True):
            add_weights(found, key, weights)
        return found

    def _weights_of(self, run: Run) -> list[list[float]]:
        """What each group weighs at each checkpoint of the run."""
        return [
            group_weights(weight, self.plan.groups, checkpoint.name)
            for weight, checkpoint in zip(run.weights, run.checkpoints, strict=True)
        ]

    def _examples(self) -> Examples:
        """The training data, if it and the run are those of the build as far as a few rows tell."""
        run = self._known_run()
        if self._train is None:
            raise QueryError(
                "Exact scores come from the training data, and this index was opened without it. "
                "Give tracin.Index.open(folder, run=run, train=train), the data it was built from."
            )
        examples = open_examples(self._train, name="train")
        self.store.refuse_other_ids(examples.ids)
        if len(examples) < len(self):
            raise IndexingError(
                f"The index has {len(self)} rows, but train holds {len(examples)} examples. Give "
                "the data that it was built from."
            )
        if not self._is_agreed:
            manifest, where = self.store.manifest, self.store.place.url
            refuse_other_data(manifest, examples, self._train, where)
            refuse_other_parameters(self.store, run)
            if not is_sharded(run.model):
                refuse_other_losses(manifest, run, partial(losses_at, run, examples), where)
            self._is_agreed = True
        return examples


@final
@dataclass(frozen=True, eq=False)
class _Candidates:
    """Rows to be scored by the model.

    Attributes:
        proponents: [queries, candidates]; -1 is nobody.
        opponents: [queries, candidates].
        bounds: What others are not expected to exceed, or fall below: [queries] each; None where
            nobody knows.
    """

    proponents: np.ndarray
    opponents: np.ndarray
    bounds: tuple[Tensor, Tensor] | None = None


def _check_hits(k: Any, most: int) -> None:
    count_within(k, most, f"the index has {most} rows to choose from", QueryError)
