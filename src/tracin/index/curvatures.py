"""K-FAC for the queries of an index: curvature computed from its own rows, and kept with them."""

from typing import final

import torch
from torch import Tensor

from tracin.data import open_examples
from tracin.errors import PreconditionerError
from tracin.index.row_curvature import RowCurvature, is_kept_whole
from tracin.index.row_moments import (
    ColumnMoments,
    count_of_numbers,
    moments_of_examples,
    moments_of_rows,
    refuse_too_wide,
)
from tracin.index.rows import RowMaker
from tracin.index.store import Store
from tracin.index.store.moments_file import read_moments, write_moments
from tracin.preconditioners import KFAC
from tracin.preconditioners.fit_data import spread_evenly
from tracin.run import Run
from tracin.sketches import Plan

# Numbers of inverses that stay in memory from one call to the next: 256 MB in float64.
HELD = 1 << 25


@final
class Curvatures:
    """The curvature at each of a run's checkpoints, as its `tracin.KFAC` asks for it.

    Rows are gradients without any preconditioner, so one index serves any damping. Moments are
    read from the index's folder, or computed from its rows once and kept there. With
    `KFAC(fit=...)` the model makes rows of those data instead, and nothing is kept.

    Args:
        store: The index's files.
        plan: How gradients became rows.
        run: The run.
        kfac: Its preconditioner.
    """

    def __init__(self, store: Store, plan: Plan, run: Run, kfac: KFAC) -> None:
        self._store, self._plan, self._run, self._kfac = store, plan, run, kfac
        self._held: dict[str, RowCurvature] = {}

    def times(
        self, keys: list[str], number: int, maker: RowMaker, rows: Tensor, progress: bool | None
    ) -> Tensor:
        """Queries' rows at a checkpoint times the inverse curvature: [queries, width].

        Args:
            keys: Of the run's checkpoints.
            number: Which of them the rows are of.
            maker: Makes rows of examples.
            rows: [queries, width].
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            PreconditionerError: There is no damping, or columns are too many; or the last
                checkpoint's curvature is asked for where that has other columns.
            IndexingError: The index is incomplete, or a file is damaged.
        """
        if self._kfac.is_made_once:
            self._refuse_other_columns()
            number = len(keys) - 1
        key = keys[number]
        if key not in self._held:
            self._hold(key, self._made(key, number, maker, progress))
        return self._held[key].times(rows)

    def _made(self, key: str, number: int, maker: RowMaker, progress: bool | None) -> RowCurvature:
        kfac, columns = self._kfac, self._plan.columns
        refuse_too_wide(columns)
        moments = self._of_rows(key, progress) if kfac.fit is None else self._of_data(number, maker)
        return RowCurvature.of(columns, moments, kfac.damping, kfac.row_damping)

    def _of_rows(self, key: str, progress: bool | None) -> ColumnMoments:
        store, columns = self._store, self._plan.columns
        positions = torch.tensor(self._places(store.manifest.rows))
        count, size = len(positions), count_of_numbers(columns)
        kept = read_moments(store.place, store.manifest, key, count, size)
        if kept is None:
            found = moments_of_rows(store, columns, key, positions, progress)
            kept = found.to_numbers()
            write_moments(store.place, store.manifest, key, count, kept)
        return ColumnMoments.of_numbers(columns, kept, count)

    def _of_data(self, number: int, maker: RowMaker) -> ColumnMoments:
        data = open_examples(self._kfac.fit, name="fit")
        chosen = data.subset(list(self._places(len(data))))
        return moments_of_examples(
            self._plan.columns, len(chosen), lambda span: maker.sketched(number, chosen, span).rows
        )

    def _places(self, total: int) -> list[int]:
        """Which rows curvature is computed from: as many as the widest matrix needs."""
        widths = [max(one.shape, default=1) for one in self._run.parameters.values()]
        widths += [side.width for side in self._plan.columns.sides]
        return spread_evenly(total, self._kfac.examples, max(widths, default=1))

    def _hold(self, key: str, found: RowCurvature) -> None:
        while self._held and found.numbers + sum(o.numbers for o in self._held.values()) > HELD:
            del self._held[next(iter(self._held))]
        self._held[key] = found

    def _refuse_other_columns(self) -> None:
        if is_kept_whole(self._plan.columns):
            return
        raise PreconditionerError(
            'KFAC(at="last") takes the last checkpoint\'s curvature for all, but the sketched '
            "columns of an index have other random numbers at each checkpoint. Use "
            'KFAC(at="each"), which reads it from the rows, or run.explain(train, queries).'
        )
