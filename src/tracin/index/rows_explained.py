"""What explains some of an index's own rows: a search with these as queries, without a model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracin.errors import QueryError
from tracin.index.fan_out import best_of_all
from tracin.index.measure_recall import known_recall
from tracin.index.row_scan import RowScan, ScanStoppedError, SketchedQueries
from tracin.index.search import Best
from tracin.index.store import Store
from tracin.index.stored_facts import stored_facts
from tracin.results.explanations import Explanations
from tracin.sketches import Plan


def checked_rows(positions: Any, rows: int) -> Tensor:
    """Positions of an index's rows as they come: [queries], int64.

    Raises:
        QueryError: None, one that is no row, or one that comes twice.

    Example:
        >>> checked_rows([4, 2], rows=5)
        tensor([4, 2])
    """
    found = torch.as_tensor(np.asarray(positions))
    if found.ndim != 1 or len(found) == 0 or found.is_floating_point() or found.dtype == torch.bool:
        raise QueryError(
            f"positions are whole numbers, [queries], such as [3, 17]; got {list(found.shape)} of "
            f"{found.dtype}."
        )
    found = found.long()
    outside = found[(found < 0) | (found >= rows)]
    if len(outside):
        raise QueryError(
            f"Position {int(outside[0])} is no row of the index: it has rows 0 to {rows - 1}."
        )
    if len(found.unique()) < len(found):
        raise QueryError("A position comes twice in positions: name each row once.")
    return found


def stored_queries(store: Store, positions: Tensor) -> SketchedQueries:
    """Some rows as queries, at all checkpoints, with the weights of the build: [queries]."""
    entries = store.manifest.checkpoints
    rising, back = positions.sort()
    rows = {key: store.rows_at(key, rising)[back.argsort()] for key in {e.key for e in entries}}
    return SketchedQueries(
        tuple(each.key for each in entries),
        tuple(range(len(entries))),
        tuple(rows[each.key] for each in entries),
        tuple(list(each.weights) for each in entries),
    )


def rows_explained(
    store: Store,
    plan: Plan,
    positions: Tensor,
    k: int,
    memory: int,
    is_stopped: Callable[[], bool] | None,
    progress: bool | None,
) -> Explanations | None:
    """The strongest other rows for each of some rows; None if it was stopped.

    Args:
        store: The index's files.
        plan: How gradients became rows.
        positions: [queries].
        k: Results per query and side.
        memory: Bytes that a block may take, about.
        is_stopped: Asked before each block; None never stops.
        progress: None shows a bar on a terminal or in a notebook.
    """
    queries = stored_queries(store, positions)
    scan = RowScan(store, plan, queries, memory, None, progress, is_stopped)
    try:
        # One more, since a row is usually among its own strongest.
        top, bottom = best_of_all(scan, k + 1, None)
    except ScanStoppedError:
        return None
    ids = store.ids()
    sides = [without_themselves(side, positions, k).to_influences(ids) for side in (top, bottom)]
    last = queries.keys[-1]
    proponents, opponents = (
        replace(side, facts=stored_facts(store, last, side.positions)) for side in sides
    )
    recall, note = known_recall(store, queries.keys)
    names = tuple(each.name for each in store.manifest.checkpoints)
    rows = positions.numpy()
    facts = stored_facts(store, last, rows)
    return Explanations(ids[rows], proponents, opponents, names, recall, (note,), facts)


def without_themselves(best: Best, positions: Tensor, k: int) -> Best:
    """The first k of k + 1 results that are not the query itself.

    Args:
        best: [queries, k + 1].
        positions: [queries]; where each query is among the rows.
        k: How many to keep.
    """
    is_itself = torch.from_numpy(best.positions) == positions[:, None]
    # Stable: what is no query keeps its order, and the query itself goes to the end.
    order = is_itself.long().argsort(dim=1, stable=True)[:, :k]
    at = torch.arange(len(order))[:, None]
    return Best(
        best.positions[at.numpy(), order.numpy()],
        best.scores[at, order],
        best.by_checkpoint[at, order],
        best.errors[at, order],
    )
