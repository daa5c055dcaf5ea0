"""What explains a row: searched in an index on one thread, a page ahead of the person."""

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from tracin.decisions.ranked_table import RankedTable
from tracin.errors import IndexingError

if TYPE_CHECKING:
    from tracin.index.index import Index
    from tracin.results.explanations import Influence

HITS = 12
ALIKE = 0.999  # cosine of gradients from which two examples count as the same one twice
KEPT = 2000
BATCH = 100
_WAITING = 4
_MEMORY = 1 << 26  # bytes of a block; a viewer is a guest on the machine


@final
@dataclass(frozen=True)
class Hit:
    """One example that explains another.

    Attributes:
        id: Its id.
        row: Its row in the ranking; None if the ranking does not hold it.
        score: Its influence, estimated from the index.
        error: One standard deviation of the estimate.
        by_checkpoint: Each checkpoint's share of the score.
        cosine: Of the two gradients, over all checkpoints: 1 for equal examples.
    """

    id: object
    row: int | None
    score: float
    error: float
    by_checkpoint: tuple[float, ...]
    cosine: float


@final
@dataclass(frozen=True)
class RowExplanation:
    """What explains one row, strongest first."""

    proponents: tuple[Hit, ...]
    opponents: tuple[Hit, ...]
    checkpoints: tuple[str, ...]
    note: str

    def alike(self) -> list[int]:
        """Rows whose gradients say that they are the same example again."""
        return [one.row for one in self.proponents if one.cosine >= ALIKE and one.row is not None]


@final
class Explainer:
    """Answers one row at a time, and searches for a whole page at once before it is asked.

    A search reads the whole index, for one row about as long as for fifty, so a page of rows
    is searched together, on a thread of its own. A row that is asked for and is not in the search
    that is going on breaks it off; it goes on afterwards.

    Args:
        folder: The index: a folder or a URL.
        table: The ranking.
    """

    def __init__(self, folder: str, table: RankedTable) -> None:
        self._folder, self._table = folder, table
        self._index: Index | None = None
        self._lengths = np.empty(0)
        self._problem: Exception | None = None
        self._kept: OrderedDict[int, RowExplanation] = OrderedDict()
        self._asked: deque[tuple[int, Future[RowExplanation]]] = deque()
        self._ahead: tuple[int, ...] = ()
        self._running: frozenset[int] = frozenset()
        self._is_stopped = threading.Event()
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tracin explainer", daemon=True)
        self._thread.start()

    def explained(self, row: int) -> "Future[RowExplanation]":
        """What explains a row, as soon as it is known.

        Of many rows that are asked for at once the latest are searched; the others are cancelled.
        """
        future: Future[RowExplanation] = Future()
        with self._changed:
            if row in self._kept:
                self._kept.move_to_end(row)
                future.set_result(self._kept[row])
                return future
            self._asked.append((row, future))
            while len(self._asked) > _WAITING:
                self._asked.popleft()[1].cancel()
            if row not in self._running:
                self._is_stopped.set()
            self._changed.notify()
        return future

    def ahead(self, rows: Sequence[int]) -> None:
        """Search for these rows next, in place of those that were named before."""
        with self._changed:
            self._ahead = tuple(rows)[:BATCH]
            if not self._asked and not self._running <= set(self._ahead):
                self._is_stopped.set()
            self._changed.notify()

    def close(self) -> None:
        """Stop the search that is going on, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._is_stopped.set()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._asked or self._unknown())
                if self._is_closed:
                    for _, future in self._asked:
                        future.cancel()
                    return
                rows = tuple(dict.fromkeys(row for row, _ in self._asked)) or self._unknown()
                self._running = frozenset(rows)
                self._is_stopped.clear()
            found: dict[int, RowExplanation] | None = None
            problem: Exception | None = None
            try:
                found = self._searched(rows)
            except Exception as error:  # whoever asks is told
                problem = error
            with self._changed:
                self._running = frozenset()
                self._keep(found or {})
                self._answer(rows, problem)

    def _keep(self, found: dict[int, RowExplanation]) -> None:
        self._kept.update(found)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _answer(self, rows: Sequence[int], problem: Exception | None) -> None:
        waiting, self._asked = self._asked, deque()
        for row, future in waiting:
            if row in self._kept:
                _settle(future, self._kept[row])
            elif problem is not None and row in rows:
                _settle(future, problem)
            else:
                self._asked.append((row, future))
        if problem is not None:
            self._ahead = ()  # it would fail again and again

    def _unknown(self) -> tuple[int, ...]:
        return tuple(row for row in self._ahead if row not in self._kept)

    def _searched(self, rows: Sequence[int]) -> dict[int, RowExplanation] | None:
        index = self._opened()
        hits = min(HITS, len(index) - 1)
        if hits < 1:
            raise IndexingError(f"{self._folder} has one row, so nothing else explains it.")
        positions = self._table.positions[list(rows)]
        found = index.explain_rows(
            positions, hits, memory=_MEMORY, is_stopped=self._is_stopped.is_set, progress=False
        )
        if found is None:
            return None
        answers: dict[int, RowExplanation] = {}
        for at, row in enumerate(rows):
            own = float(self._lengths[positions[at]])
            sides = [
                tuple(self._hit(one, own) for one in side.of(at))
                for side in (found.proponents, found.opponents)
            ]
            note = " ".join(found.notes)
            answers[row] = RowExplanation(sides[0], sides[1], found.checkpoints, note)
        return answers

    def _hit(self, one: "Influence", own: float) -> Hit:
        at = int(np.searchsorted(self._table.positions, one.position))
        is_ranked = at < len(self._table) and self._table.positions[at] == one.position
        other = float(self._lengths[one.position])
        cosine = one.score / (own * other) ** 0.5 if own * other > 0 else 0.0
        row = at if is_ranked else None
        return Hit(one.id, row, one.score, one.error, one.by_checkpoint, cosine)

    def _opened(self) -> "Index":
        """The index, opened when it is first needed: torch takes longer to import than a page."""
        if self._index is None:
            import torch

            from tracin.index.index import Index
            from tracin.index.table import sketched_self_influence

            # Two threads that wait for each other on a busy machine cost ten times the CPU.
            torch.set_num_threads(1)
            index = Index.open(self._folder)
            self._refuse_other(index.ids)
            self._lengths = sketched_self_influence(index.store).numpy()
            self._index = index
        return self._index

    def _refuse_other(self, ids: np.ndarray) -> None:
        positions, there = self._table.positions, self._table.ids.array()
        if positions[-1] >= len(ids) or (ids[positions] != there).any():
            raise IndexingError(
                f"{self._folder} is an index of other examples than {self._table.path}: their ids "
                "differ. Name the index of this ranking by --index."
            )


def _settle(future: "Future[RowExplanation]", found: RowExplanation | Exception) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(found, Exception):
        future.set_exception(found)
    else:
        future.set_result(found)
