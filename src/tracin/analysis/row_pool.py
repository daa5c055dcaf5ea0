"""A pool that is the rows of an index: scores are estimates, and the model sees targets alone."""

from collections.abc import Sequence
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from tracin.analysis.pool import normalised
from tracin.analysis.selection import largest
from tracin.data import Examples
from tracin.errors import QueryError
from tracin.index.index import MEMORY, Index
from tracin.index.matched_run import MatchedRun
from tracin.index.row_scan import RowScan, SketchedQueries
from tracin.index.search import Search, scored
from tracin.index.table import exact_self_influence
from tracin.run import Run, asked_of, run_under
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.scoring.targets import Target


@final
class RowPool:
    """The rows of an index, and targets that are sketched as its queries are.

    Args:
        index: The index, with a run.
        targets: Those to help with.
        target: What of them to raise; None is for their loss, to be lowered.
        batch_size: How many examples go through the model at once.
        progress: Whether to show a bar.

    Raises:
        QueryError: The index has no run.
    """

    def __init__(
        self,
        index: Index,
        targets: Examples,
        target: Target | None,
        batch_size: BatchSize,
        progress: bool | None,
    ) -> None:
        if index.run is None:
            raise QueryError(
                "Targets need a model, and this index was opened without one. Use "
                "tracin.Index.open(folder, run=run) with the tracin.TracIn of its checkpoints."
            )
        index.store.refuse_missing()
        self._run: Run = index.run
        self._store, self._plan = index.store, index.plan
        size = checked_size(batch_size)
        self._asked = asked_of(self._run, targets, target, size, progress)
        self._batch_size: BatchSize = batch_size
        self._progress = progress
        self.ids, self.target_ids = index.ids, targets.ids

    @property
    def dtype(self) -> torch.dtype:
        """How precise scores are."""
        return torch.float32

    def influence(self, members: Sequence[Tensor], normalise: str | None) -> Tensor:
        """The mean influence of every row on each group, estimated: [pool, groups], float64.

        Lengths of rows are exact: those of plain gradients, or under Adam where the index was built
        so. The length of a group is that of its mean under the run's preconditioner.
        """
        queries = self._sketched(self._run)
        scores = self._group_scores(queries, members)
        if normalise is None:
            return scores.sum(0)
        squares = torch.stack(
            [
                exact_self_influence(self._store, {key: weights}).double()
                for key, weights in zip(queries.keys, queries.weights, strict=True)
            ]
        )
        kernels = torch.stack([self._kernel(queries, at) for at in range(len(queries.keys))])
        groups = torch.stack([kernels[:, one][:, :, one].mean((1, 2)) for one in members], 1)
        weights = [largest(each) for each in self._run.weights]
        return normalised(scores, squares, groups, weights, normalise)

    def products(self, some: Sequence[int], others: Sequence[int]) -> Tensor:
        """The products of the rows themselves, summed over checkpoints: [some, others], float64."""
        plain = self._plain
        return self._summed(plain, some, [self._rows(key, others) for key in plain.keys])

    def target_products(self, some: Sequence[int]) -> Tensor:
        """The same of some rows with all targets: [some, targets], float64."""
        return self._summed(self._plain, some, self._plain.rows)

    def target_squares(self) -> Tensor:
        """The squared lengths of the targets' rows: [targets], float64."""
        columns, plain = self._plan.columns, self._plain
        each = zip(plain.rows, plain.weights, strict=True)
        squares = [columns.squared_lengths(rows, weights).double() for rows, weights in each]
        return torch.stack(squares).sum(0)

    @cached_property
    def _plain(self) -> SketchedQueries:
        """The targets as the rows are: without the preconditioner, unless rows are under it."""
        matched = MatchedRun(self._store, self._plan, self._run)
        run = self._run if matched.is_as_rows else run_under(self._run, None)
        return self._sketched(run).merged()

    def _sketched(self, run: Run) -> SketchedQueries:
        matched = MatchedRun(self._store, self._plan, run)
        asked = self._asked
        return matched.sketched(asked.queries, self._batch_size, self._progress, asked.loss)

    def _group_scores(self, queries: SketchedQueries, members: Sequence[Tensor]) -> Tensor:
        """[checkpoints, pool, groups], float64."""
        parts = torch.zeros(len(queries), len(members), dtype=torch.float64)
        for at, one in enumerate(members):
            parts[one, at] = 1 / len(one)
        found = torch.zeros(len(queries.keys), len(self.ids), len(members), dtype=torch.float64)
        scan = RowScan(self._store, self._plan, queries, MEMORY, progress=self._progress)
        for span, part in scan.parts(Search.smallest(queries)):
            for block in scored(part):
                rows = slice(block.first, block.first + block.scores.shape[2])
                found[:, rows] += block.scores.double().transpose(1, 2) @ parts[span]
        return found

    def _kernel(self, queries: SketchedQueries, at: int) -> Tensor:
        """The targets' products with each other at a checkpoint: [targets, targets], float64."""
        weights, rows = queries.weights[at], queries.rows[at]
        found = self._plan.columns.scores(rows, rows, weights).double()
        # What is known exactly: products of a sketch with itself are too large.
        exact = queries.squared_norms[at].double() @ torch.tensor(weights, dtype=torch.float64)
        return found.diagonal_scatter(exact)

    def _summed(
        self, plain: SketchedQueries, some: Sequence[int], others: Sequence[Tensor]
    ) -> Tensor:
        found = [
            self._plan.columns.scores(self._rows(key, some), rows, weights).double()
            for key, rows, weights in zip(plain.keys, others, plain.weights, strict=True)
        ]
        return torch.stack(found).sum(0)

    def _rows(self, key: str, positions: Sequence[int]) -> Tensor:
        rising, back = torch.as_tensor(positions, dtype=torch.int64).sort()
        return self._store.rows_at(key, rising)[back.argsort()]
