"""A run and its training data, as far as they match an index."""

from functools import partial
from typing import Any, final

from torch import Tensor

from tracin.data import Examples, open_examples
from tracin.errors import IndexingError, QueryError
from tracin.index.contents import (
    checkpoint_keys,
    refuse_other_parameters,
    refuse_other_preconditioner,
    rows_under,
)
from tracin.index.curvatures import Curvatures
from tracin.index.data import losses_at, refuse_changed_losses, refuse_other_data
from tracin.index.row_scan import SketchedQueries
from tracin.index.rows import RowMaker, group_weights
from tracin.index.store import Store
from tracin.index.table import add_weights, sketched_squared_norms
from tracin.preconditioners import KFAC
from tracin.results.example_facts import ExampleFacts
from tracin.run import Run, rows_pass
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.query_loss import QueryLoss
from tracin.sharding import is_sharded
from tracin.sketches import Plan


@final
class MatchedRun:
    """A run whose checkpoints are found in an index by their weights, and its rows by their ids.

    Args:
        store: The index's files.
        plan: How gradients became rows.
        run: The run.
        train: The training data; None where exact scores are not needed.
        is_checked: Whether run and data are known to be those of the build. If not, they are
            compared once, on the first call that needs the data.
    """

    def __init__(
        self, store: Store, plan: Plan, run: Run, train: Any = None, *, is_checked: bool = False
    ) -> None:
        self.run = run
        self._store, self._plan, self._train = store, plan, train
        self._is_checked = is_checked
        self._under = rows_under(store.manifest)
        kfac = run.preconditioner
        self._curvatures = Curvatures(store, plan, run, kfac) if isinstance(kfac, KFAC) else None

    @property
    def has_row_curvature(self) -> bool:
        """Whether queries are multiplied by curvature that comes from the index's rows.

        Their products are then no estimates of the model's own scores under the preconditioner.
        """
        return self._curvatures is not None

    @property
    def is_as_rows(self) -> bool:
        """Whether the run's preconditioner, or its lack of one, is that of the rows.

        The measured recall and the squared lengths that are stored are then the run's own.
        """
        return self.run.preconditioner == self._under

    def checkpoint_pass(self, asked: QueryLoss | None = None) -> CheckpointPass:
        """A pass over the run's checkpoints; `asked` takes the place of the queries' loss."""
        return rows_pass(self.run, asked)

    def keys(self) -> list[str]:
        """The key of each of the run's checkpoints.

        Raises:
            IndexingError: The index has no rows at one of them.
            PreconditionerError: The index has rows for another preconditioner than the run's.
        """
        refuse_other_preconditioner(self._store, self.run)
        keys = checkpoint_keys(self.run, self._under)
        entries = self._store.manifest.checkpoints
        there = {entry.key for entry in entries}
        unknown = [
            one.name
            for one, key in zip(self.run.checkpoints, keys, strict=True)
            if key not in there
        ]
        if unknown:
            names = ", ".join(entry.name for entry in entries)
            moments = "" if self._under is None else " and Adam's second moments"
            raise IndexingError(
                f"The index has no rows at {', '.join(unknown)}: it was built at {names}, and "
                f"checkpoints are matched by their weights{moments}. Use those, or build the index "
                "again with the new ones."
            )
        return keys

    def weights(self) -> list[list[float]]:
        """The weight of each group at each of the run's checkpoints: [checkpoints][groups]."""
        return [
            group_weights(weight, self._plan.groups, checkpoint.name)
            for weight, checkpoint in zip(self.run.weights, self.run.checkpoints, strict=True)
        ]

    def weights_by_key(self) -> dict[str, list[float]]:
        """The same by key; the weights of checkpoints with equal keys are added."""
        found: dict[str, list[float]] = {}
        for key, weights in zip(self.keys(), self.weights(), strict=True):
            add_weights(found, key, weights)
        return found

    def sketched(
        self,
        queries: Examples,
        batch_size: BatchSize,
        progress: bool | None = None,
        asked: QueryLoss | None = None,
    ) -> SketchedQueries:
        """The queries' rows at each checkpoint, under the run's preconditioner, and the weights.

        `asked` takes the place of the queries' loss.

        Raises:
            PreconditionerError: The preconditioner does not go with an index, or cannot be made.
            IndexingError: The index is of other checkpoints, parameters, data or another loss.
            NonFiniteError: A query's loss or gradient is NaN or infinite.
        """
        keys, weights = self.keys(), self.weights()
        refuse_other_parameters(self._store, self.run)
        if self._train is not None and not self._is_checked:
            self.examples()
        draws = [self._store.manifest.entry(key).number for key in keys]
        names = [one.name for one in self.run.checkpoints]
        size = checked_size(batch_size)
        walk, scaled = self.checkpoint_pass(asked), self._under is not None
        with RowMaker(walk, self._plan, draws, names, size, is_scaled=scaled) as maker:
            by_key = {
                key: self._multiplied(maker, keys, keys.index(key), queries, progress)
                for key in dict.fromkeys(keys)
            }
        found = [by_key[key] for key in keys]
        return SketchedQueries(
            tuple(keys),
            tuple(range(len(keys))),
            tuple(rows for rows, _, _ in found),
            tuple(weights),
            tuple(squared_norms for _, squared_norms, _ in found),
            found[-1][2],
        )

    def _multiplied(
        self,
        maker: RowMaker,
        keys: list[str],
        number: int,
        queries: Examples,
        progress: bool | None,
    ) -> tuple[Tensor, Tensor, ExampleFacts]:
        """The queries' rows under the preconditioner, their squared lengths by group, and facts."""
        if self._curvatures is None:
            found = maker.sketched_queries(number, queries)
            return found.rows, found.squared_norms, found.facts
        plain = maker.sketched(number, queries, range(len(queries)), "query")
        rows = self._curvatures.times(keys, number, maker, plain.rows, progress)
        return rows, sketched_squared_norms(self._plan.columns, rows), plain.facts

    def examples(self) -> Examples:
        """The training data, compared with the index on a few examples.

        Raises:
            IndexingError: The data, the model or the loss are not those of the build.
            QueryError: The index was opened without training data.
        """
        if self._train is None:
            raise QueryError(
                "Exact scores need the training data, and this index was opened without it. Use "
                "tracin.Index.open(folder, run=run, train=train) with the data it was built from."
            )
        store, rows = self._store, self._store.manifest.rows
        examples = open_examples(self._train, name="train")
        store.refuse_other_ids(examples.ids)
        if len(examples) < rows:
            raise IndexingError(
                f"The index has {rows} rows, but train has {len(examples)} examples. Pass the data "
                "that the index was built from."
            )
        if not self._is_checked:
            manifest, where = store.manifest, store.place.url
            refuse_other_data(manifest, examples, self._train, where)
            refuse_other_parameters(store, self.run)
            if not is_sharded(self.run.model):
                losses = partial(losses_at, self.run, examples)
                refuse_changed_losses(manifest, self.run, losses, where)
            self._is_checked = True
        return examples
