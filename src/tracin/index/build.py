"""Begins or resumes an index: agrees on a manifest, builds missing units, writes the table."""

import os
from dataclasses import replace
from functools import partial
from typing import Any

from tracin.checks import positive_int
from tracin.engines import Engine, Mesh
from tracin.errors import IndexingError
from tracin.index.contents import (
    about_of,
    checkpoint_keys,
    draw_of,
    plan_in,
    projection_of,
    refuse_other_preconditioner,
    rows_under,
)
from tracin.index.data import (
    Losses,
    added_of,
    as_begun,
    losses_at,
    refuse_changed_losses,
    refuse_other_data,
    unmoved,
    with_losses,
)
from tracin.index.index import Index
from tracin.index.job import IndexJob
from tracin.index.measure_recall import HITS, QUERIES, is_recall_known
from tracin.index.rows import group_weights, groups_of, plan_of
from tracin.index.store import Entry, Manifest, Store, absolute, number_format, open_storage
from tracin.index.store.manifest import FILE, refuse_other
from tracin.index.table import extra_columns, write_table
from tracin.preconditioners import Adam
from tracin.run import Run, open_data, parameter_shapes, rows_pass
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.sharding import by_first, is_sharded, led
from tracin.sketches import Plan, Projection


@unmoved()
def begun(
    run: Run,
    train: Any,
    folder: str | os.PathLike[str],
    projection: Projection | None,
    numbers: str,
    shard_size: int,
    batch_size: BatchSize,
) -> IndexJob:
    """Write the manifest, and return the work to do.

    Raises:
        IndexingError: The folder holds another index, or an option cannot be.
        PreconditionerError: The folder holds an index under Adam, and the run is under another.
    """
    number_format(numbers)
    positive_int(shard_size, "shard_size", IndexingError)
    size = checked_size(batch_size)
    examples = open_data(run, train, "train")
    where = absolute(folder)
    projection = projection or Projection()
    known = partial(_known, where, projection, run)
    plan, under = by_first(known) if is_sharded(run.model) else known()
    walk = rows_pass(run)
    if plan is None:
        groups = groups_of(run.weights, run.parameters)
        scaled = under is not None
        plan = plan_of(walk, examples, projection, groups, is_scaled=scaled)
        if is_sharded(run.model):
            plan = Plan.from_json(by_first(plan.to_json))
    extra = extra_columns(plan.columns.groups)
    about = about_of(parameter_shapes(run), projection, plan, under)
    keys = checkpoint_keys(run, under)
    entries = tuple(
        Entry(key, one.name, draw_of(key), tuple(group_weights(weight, plan.groups, one.name)))
        for key, one, weight in zip(keys, run.checkpoints, run.weights, strict=True)
    )
    # Each has a scale of its own.
    pieces = tuple((side.start, side.stop) for side in plan.columns.sides)
    rows = (len(examples),)
    here = Manifest(about, plan.width, pieces, numbers, shard_size, rows, entries, extra)

    def agreed(losses: Losses) -> Manifest:
        def proposed(there: Manifest | None) -> Manifest:
            if there is not None:
                refuse_other(there, here, where)
                there.extended(here)  # refuses fewer rows, before they are looked for
                refuse_other_data(there, examples, train, where)
                refuse_changed_losses(there, run, losses, where)
            later = with_losses(there, here, losses)
            manifest = as_begun(later) if there is None else there.extended(later)
            new = manifest.spans()[len(manifest.added) :]
            added = [added_of(examples, span, train) for span in new]
            return replace(manifest, added=(*manifest.added, *added))

        return Store.agreed(where, proposed, examples.ids).manifest

    losses = partial(losses_at, run, examples)
    manifest = led(agreed, losses) if is_sharded(run.model) else agreed(losses)
    return IndexJob(run, train, where, size, manifest, walk)


@unmoved()
def finished(
    job: IndexJob, engine: Engine, progress: bool | None, recall_queries: int = QUERIES
) -> Index:
    """Build the missing units, write the table, measure the recall, and open the index."""
    is_divided = is_sharded(job.run.model)
    if is_divided != isinstance(engine, Mesh):
        raise IndexingError(
            "A model sharded by fully_shard needs engine=tracin.engines.Mesh(), and no other model "
            f"can use it; got {type(engine).__name__} for a model that is "
            f"{'sharded' if is_divided else 'whole'}. Use engine=tracin.engines."
            f"{'Mesh()' if is_divided else 'Ranks.from_environment(), Processes(n) or Serial()'}."
        )
    store = Store.open(job.folder)
    wanted = set(checkpoint_keys(job.run, rows_under(store.manifest)))
    engine.run(job, [u for u in store.manifest.units() if u.checkpoint in wanted], progress)
    store = Store.open(job.folder)  # others may have added to it meanwhile
    lost = wanted - {each.key for each in store.manifest.checkpoints}
    if lost or store.manifest.rows < job.manifest.rows:
        raise IndexingError(
            f"{job.folder} was changed during this build: another build changed its manifest, or "
            "a checkpoint was dropped. Run the same again; finished files are kept."
        )
    by_first(partial(table, store)) if is_divided else table(store)
    index = Index(store, job.run, job.train, is_checked=True)
    if recall_queries and _is_recall_due(store, job.run):
        size = job.batch_size or "auto"
        index.measure_recall(queries=recall_queries, batch_size=size, progress=progress)
    return index


def _is_recall_due(store: Store, run: Run) -> bool:
    """Whether the index is complete, at this run's checkpoints, and its recall not known.

    Never where the model is sharded: exact scores of single examples are for whole ones. Nor under
    a preconditioner that the rows are not under: the recall is that of queries like them.
    """
    under = rows_under(store.manifest)
    return (
        store.manifest.rows > HITS
        and run.preconditioner == under
        and set(checkpoint_keys(run, under)) == set(store.manifest.keys)
        and not is_recall_known(store)
        and not is_sharded(run.model)
        and not store.missing()
    )


def table(store: Store) -> None:
    """Write the table of rows, once all are there."""
    if not store.missing():
        write_table(store)


def _known(folder: str, projection: Projection, run: Run) -> tuple[Plan | None, Adam | None]:
    """The plan of an index that is there, if it was made by the same projection, and its scaling.

    A plan depends on the first examples' gradients, which rounding may change. An index of plain
    gradients stays one, whoever lengthens it: they answer a run under Adam, too.
    """
    if open_storage(folder).size(FILE) is None:
        return None, run.preconditioner if isinstance(run.preconditioner, Adam) else None
    store = Store.open(folder)
    plan, under = plan_in(store), rows_under(store.manifest)
    refuse_other_preconditioner(store, run)
    is_same = store.manifest.about["projection"] == projection_of(projection)
    return plan if is_same else None, under
