"""The work of building an index, unit by unit: one checkpoint and one range of rows each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

from tracin.data import Size, open_examples
from tracin.index.contents import checkpoint_keys, plan_in, rows_under
from tracin.index.rows import RowMaker
from tracin.index.store import Manifest, Store, Unit, open_storage
from tracin.index.table import sketched_squared_norms
from tracin.run import Run, rows_pass
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.sharding import by_first


@final
@dataclass(frozen=True)
class IndexJob:
    """Builds units of an index; a worker opens it once, and may be any process.

    Attributes:
        run: Model, loss and checkpoints.
        train: The training data.
        folder: The index.
        batch_size: Examples or tokens per model call; None finds the size.
        manifest: Of the index as the build began.
        walk: A pass of the run that may have checked its gradients already, so that it need not
            check all of them again; other processes make their own.
    """

    run: Run
    train: Any
    folder: str
    batch_size: Size | None
    manifest: Manifest
    walk: CheckpointPass | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "walk": None}

    @contextmanager
    def open(self) -> Iterator[Callable[[Unit], None]]:
        """Gives what builds one unit; checkpoints stay in place from one unit to the next."""
        store = Store.open(self.folder)
        examples = open_examples(self.train, name="train")
        under = rows_under(self.manifest)
        keys = checkpoint_keys(self.run, under)
        plan = plan_in(store)
        names = [one.name for one in self.run.checkpoints]
        draws = [store.manifest.entry(key).number for key in keys]
        walk = rows_pass(self.run) if self.walk is None else self.walk
        scaled = under is not None
        with RowMaker(walk, plan, draws, names, self.batch_size, is_scaled=scaled) as maker:

            def build(unit: Unit) -> None:
                number = keys.index(unit.checkpoint)
                found = maker.sketched(number, examples, range(unit.start, unit.stop))
                extra = {
                    "squared_norms": found.squared_norms,
                    "sketched_squared_norms": sketched_squared_norms(plan.columns, found.rows),
                    "loss": found.losses,
                    "label": found.labels,
                    "is_right": found.is_right,
                }
                write = partial(store.write, unit, found.rows, extra)
                by_first(write) if walk.gradients.is_sharded else write()

            yield build

    def weight(self, unit: Unit) -> int:
        """How many examples a unit has."""
        return unit.stop - unit.start

    def is_done(self, unit: Unit) -> bool:
        """Whether a unit's file is there, as long as it must be."""
        return Store(open_storage(self.folder), self.manifest).is_done(unit)
