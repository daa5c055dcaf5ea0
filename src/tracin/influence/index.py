"""The gradient index: training gradients sketched once, kept on the disk, and asked ever after."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.data import Examples, open_examples
from tracin.errors import IndexingError, QueryError
from tracin.influence.batch_size import BatchSize, checked_size
from tracin.influence.explanations import Explanations, Hits
from tracin.influence.index_exact import exact_scores
from tracin.influence.index_info import described
from tracin.influence.index_rows import RowMaker, group_weights
from tracin.influence.index_search import Asked, Search, scores_of
from tracin.influence.index_table import table_of
from tracin.sketches import Plan
from tracin.store import Removed, Report, Store

if TYPE_CHECKING:
    from tracin.influence.tracin import TracIn

MEMORY = 1 << 28  # bytes
CANDIDATES = 5  # for each hit that is wanted, so many are scored exactly


@final
class Index:
    """Sketched gradients of training examples at every checkpoint, in a folder or behind a URL.

    `tracin.TracIn.index` builds one, and `Index.open` opens it again. A query costs one small pass
    over the query at each checkpoint, and one reading of the rows.

    Attributes:
        store: The files.
        plan: How gradients became rows.

    Example:
        >>> import tempfile, torch, tracin
        >>> model = torch.nn.Linear(3, 2)
        >>> run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[0.1])
        >>> train = torch.randn(50, 3), torch.randint(0, 2, (50,))
        >>> index = run.index(train, tempfile.mkdtemp(), tracin.Projection(dim=64))
        >>> query = train[0][:1], train[1][:1]
        >>> exact, found = run.explain(query, train, k=2), index.explain(run, query, k=2)
        >>> bool((exact.top(2).positions == found.top(2).positions).all())
        True
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.plan = Plan.from_json(store.manifest.about["plan"])

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Index":
        """Open an index, complete or not.

        Args:
            folder: A folder, or any URL that fsspec knows.

        Raises:
            IndexingError: There is none, or it cannot be read.
        """
        return cls(Store.open(folder))

    def __len__(self) -> int:
        return self.store.manifest.rows

    @property
    def ids(self) -> np.ndarray:
        """The ids of the rows: [train]."""
        return self.store.ids()

    def explain(
        self,
        run: "TracIn",
        test: Any,
        k: int = 10,
        *,
        train: Any = None,
        keep: Any = None,
        candidates: int = CANDIDATES,
        memory: int = MEMORY,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Explanations:
        """The k strongest proponents and opponents of each query, by the rows of the index.

        Args:
            run: The model with the checkpoints that count, all or some of the index's; they weigh
                what they do in this run, whatever they did when the index was built.
            test: The queries.
            k: How many of each.
            train: The training data, to score the candidates again by the model itself: then the
                scores are exact, and only which examples were candidates is the index's doing.
            keep: [train], bool: only these examples may be hits, such as
                `index.table()["is_right"] == 1`.
            candidates: With `train`, how many candidates there are for each hit.
            memory: Bytes that blocks of scores and rows may take, about.
            batch_size: "auto", or how many examples go through the model at once.
            progress: None shows a bar on a terminal alone.

        Raises:
            IndexingError: The index is incomplete, or of another model or other checkpoints.
            QueryError: k is out of range, or keep is not one truth a row.
            NonFiniteError: A query's loss or gradient is NaN or infinite.
        """
        left = self._checked_keep(keep)
        count = len(self) if left is None else int(left.sum())
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= count:
            raise QueryError(
                f"k={k!r} hits were asked for, but the index has {count} rows to choose from. Give "
                f"a k from 1 to {count}."
            )
        queries = open_examples(test, name="test")
        asked = self._asked(run, queries, batch_size)
        wanted = k if train is None else min(count, k * candidates)
        found = Search(self.store, self.plan, asked, wanted, left, memory, progress).found()
        names = tuple(run.checkpoints[number].name for number in asked.numbers)
        if train is None:
            ids = self.ids
            sides = [hits.to_hits(ids) for hits in found]
        else:
            examples = self._checked_train(train)
            sides = [
                exactly(run, examples, queries, hits.positions, k, sign, batch_size, progress)
                for hits, sign in zip(found, (1, -1), strict=True)
            ]
        return Explanations(queries.ids, sides[0], sides[1], names)

    def influence(
        self,
        run: "TracIn",
        test: Any,
        *,
        memory: int = MEMORY,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """The influence of every row on every query: [train, test], estimated without bias.

        Args:
            run: As for `explain`, like all that follow.
            test: The queries.
            memory: Bytes that blocks may take, about.
            batch_size: "auto", or how many examples go through the model at once.
            progress: None shows a bar on a terminal alone.

        Raises:
            IndexingError: As from `explain`.
        """
        queries = open_examples(test, name="test")
        asked = self._asked(run, queries, batch_size)
        return scores_of(self.store, self.plan, asked, memory, progress)

    def self_influence(self, run: "TracIn | None" = None) -> Tensor:
        """Each row's influence on itself, exact: [train].

        Args:
            run: Whose weights of the checkpoints count; None for those of the build.

        Raises:
            IndexingError: The index is incomplete, or has other checkpoints than the run.
        """
        total = torch.zeros(len(self), dtype=torch.float64)
        for key, weights in self._weights(run).items():
            for shard in self.store.shards(key):
                rows = slice(shard.unit.start, shard.unit.stop)
                norms = shard.tensors["squared_norms"].double()
                total[rows] += norms @ torch.tensor(weights, dtype=torch.float64)
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

        Raises:
            IndexingError: There is none of this name.
        """
        entries = [e for e in self.store.manifest.checkpoints if e.name == checkpoint]
        if len(entries) != 1 or len(self.store.manifest.checkpoints) == 1:
            names = ", ".join(e.name for e in self.store.manifest.checkpoints)
            raise IndexingError(
                f"One checkpoint of several can be dropped by its name; the index has {names}, and "
                f"{checkpoint!r} was given."
            )
        return Index(self.store.drop(entries[0].key))

    def verify(self) -> Report:
        """Read every byte, and compare with the checksums."""
        return self.store.verify()

    def gc(self) -> Removed:
        """Delete abandoned unfinished files, and those of dropped checkpoints.

        Others may build meanwhile: an unfinished file goes only if its process, on this machine, is
        gone, or if it is more than an hour old, while writing one takes moments.
        """
        return self.store.gc()

    def __str__(self) -> str:
        return described(self.store)

    def _asked(self, run: "TracIn", queries: Examples, batch_size: BatchSize) -> Asked:
        """The queries' rows at each checkpoint of the run, and what each weighs."""
        keys = self._keys(run)
        weights = self._weights(run)
        self.refuse_other_model(run)
        entries = [self.store.manifest.entry(key) for key in keys]
        names = [one.name for one in run.checkpoints]
        numbers = [entry.number for entry in entries]
        size = checked_size(batch_size)
        with RowMaker(run.walk_for_rows(), self.plan, numbers, names, size) as maker:
            made = [
                maker.sketched(at, queries, range(len(queries)), "query").rows
                for at in range(len(keys))
            ]
        return Asked(tuple(keys), tuple(range(len(keys))), tuple(made), tuple(weights.values()))

    def refuse_other_model(self, run: "TracIn") -> None:
        """The run's parameters must be those of the rows.

        Raises:
            IndexingError: They are not.
        """
        there, here = self.store.manifest.about["parameters"], run.parameter_shapes()
        differing = [
            f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
            for name in dict.fromkeys([*there, *here])
            if there.get(name) != here.get(name)
        ]
        if differing:
            raise IndexingError(
                f"{self.store.place.url} is an index of other parameters: "
                f"{'; '.join(differing[:4])}. Give the model, and `parameters`, that it was built "
                "with."
            )

    def _keys(self, run: "TracIn") -> list[str]:
        keys = run.checkpoint_keys()
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

    def _weights(self, run: "TracIn | None") -> dict[str, list[float]]:
        """What each group weighs at each checkpoint that counts, by the checkpoint's key."""
        if run is None:
            return {e.key: list(e.weights) for e in self.store.manifest.checkpoints}
        return {
            key: group_weights(weight, self.plan.groups, checkpoint.name)
            for key, weight, checkpoint in zip(
                self._keys(run), run.weights, run.checkpoints, strict=True
            )
        }

    def _checked_keep(self, keep: Any) -> Tensor | None:
        if keep is None:
            return None
        left = torch.as_tensor(np.asarray(keep))
        if left.dtype != torch.bool or left.shape != (len(self),):
            raise QueryError(
                f"keep says of each of the {len(self)} rows whether it may be a hit, [train] of "
                f"bool; {list(left.shape)} of {left.dtype} was given."
            )
        return left

    def _checked_train(self, train: Any) -> Examples:
        examples = open_examples(train, name="train")
        self.store.refuse_other_ids(examples.ids)
        if len(examples) < len(self):
            raise IndexingError(
                f"The index has {len(self)} rows, but train holds {len(examples)} examples. Give "
                "the data that it was built from."
            )
        return examples


def exactly(
    run: "TracIn",
    train: Examples,
    queries: Examples,
    candidates: np.ndarray,
    k: int,
    sign: int,
    batch_size: BatchSize,
    progress: bool | None,
) -> Hits:
    """The best k of some candidates [queries, candidates], by the model itself."""
    candidates = np.sort(candidates, 1)  # of equal scores the first position comes first
    scores = exact_scores(
        run.walk_for_rows(), train, queries, candidates, checked_size(batch_size), progress
    )
    totals = scores.sum(2)
    order = (sign * totals).argsort(dim=1, descending=True, stable=True)[:, :k]
    positions = np.take_along_axis(candidates, order.numpy(), 1)
    shares = scores.gather(1, order[:, :, None].expand(-1, -1, scores.shape[2]))
    return Hits(train.ids[positions], positions, totals.gather(1, order), shares)


def folder_of(folder: str | os.PathLike[str]) -> str:
    """A folder as text that means the same in another process."""
    text = os.fspath(folder)
    return text if "://" in text else str(Path(text).expanduser().absolute())


def numbers_of(weights: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Weights as they are kept."""
    return [tuple(float(one) for one in each) for each in weights]
