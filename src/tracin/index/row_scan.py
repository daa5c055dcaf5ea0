"""A scan of an index's rows, block by block, for a set of queries."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from tracin.index.score_scale import ScoreScale
from tracin.index.store import Shard, Store
from tracin.index.table import add_weights
from tracin.progress import bar
from tracin.results.example_facts import ExampleFacts
from tracin.sketches import Plan


@final
@dataclass(frozen=True)
class SketchedQueries:
    """Queries, sketched.

    Attributes:
        keys: The checkpoints that count; some may have one key.
        numbers: Their places in the run.
        rows: [queries, width] at each of them.
        weights: [groups] at each of them.
        squared_norms: [queries, groups] at each of them: the exact squared lengths of the queries'
            gradients. Empty where they are not needed.
        facts: What the last checkpoint says of the queries: [queries]; None where that is unknown.
    """

    keys: tuple[str, ...]
    numbers: tuple[int, ...]
    rows: tuple[Tensor, ...]
    weights: tuple[list[float], ...]
    squared_norms: tuple[Tensor, ...] = ()
    facts: ExampleFacts | None = None

    def __len__(self) -> int:
        return len(self.rows[0])

    def merged(self) -> "SketchedQueries":
        """Checkpoints with equal weights as one, which weighs what they weigh together.

        Their rows are the same, and so are the errors of these.
        """
        weights: dict[str, list[float]] = {}
        for key, each in zip(self.keys, self.weights, strict=True):
            add_weights(weights, key, each)
        places = [self.keys.index(key) for key in weights]
        return SketchedQueries(
            tuple(weights),
            tuple(self.numbers[at] for at in places),
            tuple(self.rows[at] for at in places),
            tuple(weights.values()),
            tuple(self.squared_norms[at] for at in places if self.squared_norms),
        )

    def summed(self) -> "SketchedQueries":
        """All as one query, their sum; without lengths, which do not add up.

        Only for plans without columns of factors, whose products are not linear in a row.
        """
        rows = tuple(one.sum(0, keepdim=True) for one in self.rows)
        return SketchedQueries(self.keys, self.numbers, rows, self.weights)

    def some(self, which: slice | Tensor) -> "SketchedQueries":
        """Some of the queries."""
        return SketchedQueries(
            self.keys,
            self.numbers,
            tuple(one[which] for one in self.rows),
            self.weights,
            tuple(one[which] for one in self.squared_norms),
        )


@final
@dataclass(frozen=True)
class Block:
    """Some rows at every checkpoint that counts.

    Attributes:
        shards: A file a checkpoint, of the same rows.
        start: Where the block begins in the files.
        stop: Where it ends.
        first: The position of its first row among all.
    """

    shards: Sequence[Shard]
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        return self.stop - self.start

    def nearer(self, rows: int) -> Iterator[tuple[slice, range]]:
        """The block in smaller ones: where each is in the block, and where in the files."""
        for start in range(self.start, self.stop, rows):
            stop = min(start + rows, self.stop)
            yield slice(start - self.start, stop - self.start), range(start, stop)


class ScanStoppedError(Exception):
    """A scan whose answer nobody waits for any more."""


@final
@dataclass(frozen=True)
class RowScan:
    """An index's rows, and the queries that they are read for.

    Attributes:
        store: The rows.
        plan: How they are laid out.
        queries: The queries.
        memory: Bytes that a block, and what is made of it, may take, about.
        keep: [rows], bool: which may be found; None for all.
        progress: None shows a bar on a terminal or in a notebook.
        is_stopped: Asked before each block; once it is true, the scan raises ScanStoppedError.
        scale: What scores are multiplied by; None for 1.
    """

    store: Store
    plan: Plan
    queries: SketchedQueries
    memory: int
    keep: Tensor | None = None
    progress: bool | None = None
    is_stopped: Callable[[], bool] | None = None
    scale: ScoreScale | None = None

    def blocks(
        self, each: int, near: int, ranges: Sequence[range] | None = None
    ) -> Iterator[Block]:
        """The rows of some ranges, in their order.

        Args:
            each: Bytes that a row takes.
            near: A block is whole blocks of so many rows, one at least.
            ranges: Of the manifest's; None for all.

        Raises:
            ScanStoppedError: `is_stopped` said so.
        """
        ranges = self.store.manifest.ranges() if ranges is None else ranges
        keys = self.queries.keys
        step = max(near, self.memory // each // near * near)
        with bar(sum(map(len, ranges)) * len(keys), "search", self.progress, "row") as shown:
            for span in ranges:
                shards = [self.store.read_range(key, span) for key in keys]
                for start in range(0, len(span), step):
                    if self.is_stopped is not None and self.is_stopped():
                        raise ScanStoppedError
                    block = Block(shards, start, min(start + step, len(span)), span.start + start)
                    yield block
                    shown.update(len(block) * len(keys))

    def merged(self) -> "RowScan":
        """For the same queries, of which equal checkpoints are one."""
        return replace(self, queries=self.queries.merged())

    def parts(self, each: int) -> Iterator[tuple[slice, "RowScan"]]:
        """The queries in parts, so that `each` bytes of every query of a part are in memory.

        Yields:
            Which queries, and the scan for them.
        """
        step = max(1, self.memory // each)
        for start in range(0, len(self.queries), step):
            part = slice(start, start + step)
            scale = None if self.scale is None else self.scale.some(part)
            yield part, replace(self, queries=self.queries.some(part), scale=scale)

    def kept(self, first: int, rows: int) -> Tensor | None:
        """Which rows from the first on may be found: [rows]; None for all."""
        return None if self.keep is None else self.keep[first : first + rows]
