"""The gradient index: training gradients, sketched once, for any number of queries."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.checks import count_within, one_of, positive_int
from tracin.engines import Gatherer
from tracin.errors import IndexingError, QueryError
from tracin.guards import guarded
from tracin.index.bounds import LimitSearch, is_narrow
from tracin.index.candidates import best_proposed, finder_recall, proposed
from tracin.index.contents import plan_in, rows_under
from tracin.index.exact import Candidates, rescored
from tracin.index.fan_out import SearchTask, best_of_all, estimated_candidates, strongest
from tracin.index.finder import Finder
from tracin.index.info import described, in_one_line
from tracin.index.matched_run import MatchedRun
from tracin.index.measure_recall import HITS, QUERIES, RecallRequest, known_recall, measured
from tracin.index.row_curvature import curvature_in_words
from tracin.index.row_scan import RowScan, SketchedQueries
from tracin.index.rows_explained import checked_rows, rows_explained
from tracin.index.score_scale import score_scale
from tracin.index.search import scores_of
from tracin.index.store import Removed, Report, Store, delete_stale, verify_files
from tracin.index.stored_facts import stored_facts
from tracin.index.table import exact_self_influence, table_of
from tracin.index.where import Where, rows_where
from tracin.results.explanations import Explanations
from tracin.results.recall import Recall
from tracin.results.table import distinct
from tracin.run import Run, asked_of, class_names, open_data
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.scoring.targets import Target

MEMORY = 1 << 28  # bytes
TOGETHER = 256  # queries of a group whose scores are held at once
CANDIDATES = 5  # rows scored exactly per result


@final
class Index:
    """Sketched gradients of training examples at every checkpoint, in a folder or behind a URL.

    `tracin.TracIn.index` builds an index, and `Index.open` opens it again. A call costs one pass
    over its queries per checkpoint and one scan of the rows; the model never sees the training data
    again, except for exact scores. How rows are made, and how far their scores are off:
    docs/projections.md.

    Attributes:
        store: The files.
        run: The run that computes the queries' gradients; None if the index was opened without.
        plan: How gradients become rows.

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
        self, store: Store, run: Run | None = None, train: Any = None, *, is_checked: bool = False
    ) -> None:
        self.store, self.run, self._train = store, run, train
        self.plan = plan_in(store)
        # With the finder itself, so that no other takes its id.
        self._finder_recalls: dict[tuple[int, int, int], tuple[Finder, Recall]] = {}
        self._matched: MatchedRun | None = None
        if run is not None:
            self._matched = MatchedRun(store, self.plan, run, train, is_checked=is_checked)

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, run: Run | None = None, train: Any = None
    ) -> "Index":
        """Open an index, complete or not.

        Args:
            folder: A folder, or any URL that fsspec supports.
            run: The `tracin.TracIn` that computes the queries' gradients, with all or some of the
                index's checkpoints. Scores use this run's weights, not those of the build. Without
                a run the index can only be inspected.
            train: The training data that the index was built from, for exact scores. If it is
                given, a run with another loss, or another model of the same shapes, is refused.

        Returns:
            The index.

        Raises:
            IndexingError: The folder holds no index, or it cannot be read.
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
        normalise: str | None = None,
        where: Where = None,
        candidates: int = CANDIDATES,
        finder: Finder | None = None,
        engine: Gatherer | None = None,
        target: Target | None = None,
        memory: int = MEMORY,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Explanations:
        """The k strongest proponents and opponents of each query, found by scanning the rows.

        Scores are estimates with error bars, and the result reports the measured recall of such
        estimates. With `exact`, the rows that may be among the strongest are scored again by the
        model. `TopInfluences.is_certain` then says whether the k-th exact score is beyond every
        other row's estimate and three standard errors, so that no other row is expected to belong
        in the list. Under `tracin.KFAC()` the queries are multiplied by curvature that is computed
        from the rows (docs/kfac.md), and nothing is called certain. An index that was built under
        `tracin.Adam()` answers runs with it alone.

        Args:
            queries: The examples whose loss is explained.
            k: Results per query and side.
            exact: Whether the model scores the candidates again, on the training data that the
                index was built from or opened with.
            normalise: As in `TracIn.explain`: "cosine" divides scores by the lengths of both
                gradients, "query" by the query's alone. The lengths are exact. Under a
                preconditioner that of a row is the length of its plain gradient, which is what an
                index has stored. Not with `exact` or a finder, which choose candidates by the
                scores themselves.
            where: Which rows may be listed: a boolean array [train], or a function of
                `index.table()` that returns one, such as `lambda rows: rows["is_right"] == 1`.
            candidates: Candidates per result, with `exact` or a finder.
            finder: Proposes candidates; None scans all rows. The first call with it also scans
                them, to measure the finder's recall on a few of its queries.
            engine: From `tracin.engines`: its workers share the scan, and must see the index's
                files. None scans in this process.
            target: What proponents raise, as in `TracIn.explain`; None explains the queries' loss.
                The recall that the result reports is that of losses.
            memory: Approximate limit, in bytes, for blocks of scores and rows.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: True or False; None shows a bar on terminals only.

        Returns:
            Per query, the strongest rows on both sides.

        Raises:
            IndexingError: The index is incomplete, or of another model, loss, data or checkpoints;
                the engine's workers failed.
            QueryError: k is out of range, `normalise` is unknown or comes with `exact`, `where` is
                not a boolean per row, the index has no run or, for `exact`, no training data, or
                the finder returned too few candidates.
            NonFiniteError: A query's loss or gradient is NaN or infinite.
            PreconditionerError: The run's preconditioner does not go with the rows.
        """
        matched = self._needed_run()
        listed = rows_where(where, self.table, len(self))
        count = len(self) if listed is None else int(listed.sum())
        _check_k(k, count)
        positive_int(candidates, "candidates", QueryError)
        _check_scanner(finder, engine)
        _check_normalise(normalise, exact or finder is not None)
        train = matched.examples() if exact else None
        size = checked_size(batch_size)
        given = open_data(matched.run, queries, "queries")
        asked = asked_of(matched.run, given, target, size, progress)
        given = asked.queries
        sketched = matched.sketched(given, batch_size, progress, asked.loss)
        scan = RowScan(self.store, self.plan, sketched, memory, listed, progress)
        if normalise is not None:
            lengths = sketched.keys, sketched.weights, sketched.squared_norms
            scan = replace(scan, scale=score_scale(self.store, *lengths, normalise))
        notes: list[str] = []
        recall, proposals = None, None
        if finder is not None:
            proposals = proposed(finder, sketched, k * candidates, k, listed, len(self))
            # A search of all rows takes longer than a finder saves, so it is made once.
            key = id(finder), k, candidates
            if key not in self._finder_recalls:
                self._finder_recalls[key] = finder, finder_recall(scan, proposals, k)
            recall = self._finder_recalls[key][1]
            notes.append(f"finder: {recall}")
        if train is not None:
            chosen = (
                Candidates(*proposals)
                if proposals is not None
                else self._candidates(scan, min(count, k * candidates), engine)
            )
            walk = matched.checkpoint_pass(asked.loss)
            sides = rescored(walk, train, given, chosen, k, memory, size, progress)
        else:
            found = (
                best_of_all(scan, k, engine)
                if proposals is None
                else best_proposed(scan, proposals, k)
            )
            ids = self.ids
            sides = found[0].to_influences(ids), found[1].to_influences(ids)
            if matched.has_row_curvature:
                notes.append(curvature_in_words(self.plan.columns))
            if normalise is not None:
                notes.append(_about_normalised(normalise, matched))
            elif matched.is_as_rows:
                known, note = known_recall(self.store, sketched.keys)
                recall = recall or known
                notes.append(note)
            else:
                notes.append(
                    "recall: unknown under a preconditioner; index.measure_recall() measures it"
                )
        names = tuple(matched.run.checkpoints[number].name for number in sketched.numbers)
        last = sketched.keys[-1]
        proponents, opponents = (
            side
            if side.facts is not None
            else replace(side, facts=stored_facts(self.store, last, side.positions))
            for side in sides
        )
        return Explanations(
            given.ids,
            proponents,
            opponents,
            names,
            recall,
            tuple(notes),
            asked.facts if asked.loss is not None else sketched.facts,
            class_names(matched.run),
            asked.target,
        )

    def explain_rows(
        self,
        positions: Sequence[int] | np.ndarray | Tensor,
        k: int = 10,
        *,
        memory: int = MEMORY,
        is_stopped: Callable[[], bool] | None = None,
        progress: bool | None = None,
    ) -> Explanations | None:
        """The k strongest proponents and opponents of some of the index's own rows.

        It needs no run and no data: the stored rows are the queries, with the weights of the
        build. A row is left out of its own lists. Many rows at once cost little more than one:
        the index is read once for all of them.

        Args:
            positions: [queries]; which rows to explain, each once.
            k: Results per query and side.
            memory: Approximate limit, in bytes, for blocks of scores and rows.
            is_stopped: Asked before each block of rows; once it is true, the call returns None.
            progress: True or False; None shows a bar on terminals only.

        Returns:
            Per row, the strongest other rows on both sides; None if it was stopped.

        Raises:
            IndexingError: The index is incomplete, or a file is damaged.
            QueryError: A position is no row or comes twice, or k is out of range.

        Example:
            >>> import tempfile, torch, tracin
            >>> model = torch.nn.Linear(3, 2)
            >>> run = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates=[1.0])
            >>> train, folder = (torch.randn(50, 3), torch.randn(50, 2)), tempfile.mkdtemp()
            >>> index = run.index(train, folder, tracin.Projection(dim=64))
            >>> tracin.Index.open(folder).explain_rows([7, 3], k=2).query_ids.tolist()
            [7, 3]
        """
        _check_k(k, len(self) - 1)
        rows = checked_rows(positions, len(self))
        return rows_explained(self.store, self.plan, rows, k, memory, is_stopped, progress)

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
        """Measure which share of the true k strongest rows the index finds, and store the figure.

        Some rows serve as queries, each left out of its own results. The results of the sketched
        rows are compared with exact scores of candidates. Where the candidates were too few to be
        certain of the true results, the recall may be lower than measured; `recall.json` says for
        how many queries they were certain.

        Args:
            k: Results per query and side.
            queries: The number of rows that serve as queries.
            candidates: Rows scored exactly per result and query.
            memory: As for `explain`, like all that follow.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: True or False; None shows a bar on terminals only.

        Returns:
            The recall of proponents and of opponents.

        Raises:
            IndexingError: The index is incomplete, or cannot be written to.
            QueryError: The index has no run or no training data, or k or queries is out of range.
        """
        _check_k(k, len(self) - 1)
        positive_int(queries, "queries", QueryError)
        positive_int(candidates, "candidates", QueryError)
        request = RecallRequest(k, queries, candidates, memory, batch_size, progress)
        return measured(self.store, self.plan, self._needed_run(), request)

    @guarded
    def influence(
        self,
        queries: Any,
        *,
        group: str | None = None,
        target: Target | None = None,
        memory: int = MEMORY,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """The influence of every row on every query, estimated without bias.

        Args:
            queries: As for `explain`.
            group: "sum" or "mean" makes all of `queries` one.
            target: What proponents raise, as in `TracIn.explain`; None is for the queries' loss.
            memory: Approximate limit, in bytes, for blocks of rows.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: True or False; None shows a bar on terminals only.

        Returns:
            [train, queries]; [train] of a group.

        Raises:
            IndexingError: As from `explain`.
            QueryError: The index has no run, or an unknown group.
            NonFiniteError: A query's loss or gradient is NaN or infinite.
        """
        if group is not None:
            one_of(group, ("sum", "mean"), "group", QueryError, also="None")
        matched = self._needed_run()
        given = open_data(matched.run, queries, "queries")
        asked = asked_of(matched.run, given, target, checked_size(batch_size), progress)
        sketched = matched.sketched(asked.queries, batch_size, progress, asked.loss)
        if group is None:
            return self._scores(sketched, memory, progress)
        if not self.plan.columns.has_factors:
            total = self._scores(sketched.summed(), memory, progress)[:, 0]
        else:
            # Products of two factors: those of a sum are no sum of products.
            starts = range(0, len(given), TOGETHER)
            each = [sketched.some(slice(start, start + TOGETHER)) for start in starts]
            total = torch.stack([self._scores(one, memory, progress).sum(1) for one in each]).sum(0)
        return total / len(given) if group == "mean" else total

    def _scores(self, queries: SketchedQueries, memory: int, progress: bool | None) -> Tensor:
        return scores_of(RowScan(self.store, self.plan, queries, memory, progress=progress))

    def self_influence(self) -> Tensor:
        """Each row's influence on itself, exact, with the run's weights or those of the build.

        Of an index that was built under `tracin.Adam()` it is that under Adam.

        Returns:
            [train].

        Raises:
            IndexingError: The index is incomplete, or has no rows at one of the run's checkpoints.
            QueryError: The run has a preconditioner, and the index keeps norms of plain gradients.
            PreconditionerError: The index keeps norms under Adam, and the run is not.
        """
        is_plain = rows_under(self.store.manifest) is None
        if self.run is not None and self.run.preconditioner is not None and is_plain:
            raise QueryError(
                "This index keeps the norms of plain gradients, and its run has preconditioner="
                f"{self.run.preconditioner!r}. Use run.self_influence(train), or "
                "index.with_run(...) of a run without one. An index that is built by a run with "
                "tracin.Adam() keeps the norms under Adam."
            )
        weights = None if self._matched is None else self._matched.weights_by_key()
        return exact_self_influence(self.store, weights)

    def table(self) -> dict[str, np.ndarray]:
        """The rows as a table: id, label, is_right and loss at the last checkpoint, self-influence.

        `label` is -1 where the loss has none. `is_right` is 1 where the model's highest score was
        the label's, 0 where it was another's, -1 where that is unknown. `self_influence` is exact,
        with the weights of the build, and under Adam if the rows are; `self_influence_sketched` is
        the estimate from the rows. polars and pandas take the table as it is; a complete index
        keeps it in `table.parquet`.

        Returns:
            By name, an array [train].

        Raises:
            IndexingError: The index is incomplete, or a file is damaged.
        """
        return table_of(self.store)

    def drop(self, checkpoint: str) -> "Index":
        """Remove a checkpoint by its name; its files stay until `gc`.

        Args:
            checkpoint: Its name. Of several with one name, the second is called "NAME (2)", and so
                on, as in results.

        Returns:
            The index without it, and without a run, since this one's had the checkpoint: set one by
            `with_run`.

        Raises:
            IndexingError: There is no checkpoint of this name, or no other.
        """
        entries = self.store.manifest.checkpoints
        names = distinct([each.name for each in entries])
        if checkpoint not in names or len(entries) == 1:
            raise IndexingError(
                f"Cannot drop checkpoint {checkpoint!r}: the index has {', '.join(names)}. Name "
                "one of several; the last one cannot be dropped."
            )
        dropped = entries[names.index(checkpoint)]
        return Index(self.store.drop(dropped.key, dropped.name), None, self._train)

    def verify(self) -> Report:
        """Read every byte of all files and compare it with the checksums.

        Returns:
            Which files are damaged or missing.
        """
        return verify_files(self.store)

    def gc(self) -> Removed:
        """Delete abandoned unfinished files, and those of dropped checkpoints.

        Others may build at the same time: an unfinished file is deleted only if its process, on
        this machine, has ended, or if it is more than an hour old, while writing one takes moments.

        Returns:
            Which files were deleted.
        """
        return delete_stale(self.store)

    def __str__(self) -> str:
        return described(self.store)

    def __repr__(self) -> str:
        return f"Index({in_one_line(self.store)})"

    def _needed_run(self) -> MatchedRun:
        if self._matched is None:
            raise QueryError(
                "Queries need a model, and this index was opened without one. Use "
                "tracin.Index.open(folder, run=run) with the tracin.TracIn of its checkpoints."
            )
        return self._matched

    def _candidates(self, scan: RowScan, count: int, engine: Gatherer | None) -> Candidates:
        if self._needed_run().has_row_curvature:
            return estimated_candidates(scan, count, engine)
        found = [
            strongest(SearchTask(LimitSearch, part, count + 1), engine)
            for _, part in scan.parts(LimitSearch.smallest(scan.queries))
        ]
        return Candidates.bounded(found, count, is_sure=not is_narrow(self.plan.columns))


def _check_k(k: Any, most: int) -> None:
    count_within(k, most, f"the index has {most} rows to choose from", QueryError)


def _check_normalise(normalise: str | None, has_candidates: bool) -> None:
    if normalise is None:
        return
    one_of(normalise, ("cosine", "query"), "normalise", QueryError, also="None")
    if has_candidates:
        raise QueryError(
            f"exact=True and a finder choose candidates by the scores themselves, and "
            f'normalise="{normalise}" ranks by others. Leave one of the two out, or use '
            "run.explain(train, queries, normalise=...)."
        )


def _about_normalised(normalise: str, matched: MatchedRun) -> str:
    note = "recall: unknown for normalised scores"
    if normalise == "cosine" and not matched.is_as_rows:
        note += "; cosines are with the rows' plain gradients"
    return note


def _check_scanner(finder: Finder | None, engine: Gatherer | None) -> None:
    if finder is not None and engine is not None:
        raise QueryError(
            "A finder proposes candidates in this process, and an engine's workers scan all rows. "
            "Set finder= or engine=, not both."
        )
    if engine is not None and not hasattr(engine, "gather"):
        raise QueryError(
            f"{type(engine).__name__} cannot share the scan of an index: it has no gather. Use "
            "tracin.engines.Processes or RayCluster, or leave engine out."
        )
