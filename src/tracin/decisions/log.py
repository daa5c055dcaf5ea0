"""The log of decisions: append-only, in SQLite. Undo is one more entry, so nothing is ever lost."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from tracin.checks import one_of
from tracin.decisions.cells import as_label
from tracin.decisions.ranked_table import RankedTable, id_text
from tracin.errors import DecisionError

if TYPE_CHECKING:
    from tracin.decisions.cells import Cell

# Their places are the numbers in the file.
KINDS = ("undecided", "wrong", "right", "relabelled")
FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS log(
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,        -- seconds since 1970
    tab TEXT NOT NULL,       -- who decided: a tab of a browser
    act INTEGER NOT NULL,    -- 0 decided, 1 undone, 2 done again
    action INTEGER NOT NULL, -- the seq of the first entry of the action that this belongs to
    run TEXT NOT NULL,       -- the fingerprint of the examples and their labels
    id TEXT NOT NULL,        -- the example's id, as JSON
    position INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    label TEXT,              -- the new label, as JSON
    before INTEGER NOT NULL, -- the state that this replaced: the seq that decided it, or 0
    state INTEGER NOT NULL   -- the state since then
);
CREATE INDEX IF NOT EXISTS of_run ON log(run, seq);
"""
_DECIDED, _UNDONE, _REDONE = range(3)


class DecidedElsewhereError(DecisionError):
    """Someone else decided about an example since it was last looked at.

    Attributes:
        row: Which row of the table.
    """

    def __init__(self, row: int) -> None:
        super().__init__(
            f"Row {row} was decided about elsewhere meanwhile. Look at that decision first."
        )
        self.row = row


@final
@dataclass(frozen=True)
class Decision:
    """What was last decided about an example.

    Attributes:
        seq: The number of its entry in the log; 0 where there is none.
        state: The entry that decided what now holds: after an undo, an older one.
        kind: One of `KINDS`.
        label: The new label of one that is relabelled.
        at: When, in seconds since 1970.
    """

    seq: int = 0
    state: int = 0
    kind: str = KINDS[0]
    label: "Cell" = None
    at: float = 0.0


UNDECIDED = Decision()


@final
@dataclass(frozen=True)
class _Action:
    """One key pressed: a decision about one row, or about several at once."""

    number: int
    rows: tuple[int, ...]
    befores: tuple[int, ...]
    states: tuple[int, ...]


def _as_found(action: _Action) -> tuple[int, ...]:
    return action.befores


def _as_left(action: _Action) -> tuple[int, ...]:
    return action.states


@final
class DecisionLog:
    """Decisions about the rows of one table, in a file that may hold those of others too.

    Entries belong to a fingerprint of the table's ids and labels, so that a table of other data
    never shows them. Each is on the disk before the call returns. Several processes may write to
    one file; each sees the others' entries before it adds its own.

    Args:
        path: The file; made if it is not there.
        table: What is decided about.

    Attributes:
        kinds: [rows], int8: the place in `KINDS` of what was decided about each row.
        others: How many entries in the file are about other data.

    Raises:
        DecisionError: The file cannot be written to, or is something else.
    """

    def __init__(self, path: Path, table: RankedTable) -> None:
        self._path, self._table, self.run = path, table, table.fingerprint()
        self._lock = threading.RLock()
        self.kinds = np.zeros(len(table), np.int8)
        self._latest: dict[int, Decision] = {}  # in the order of the decisions
        self._done: dict[str, list[_Action]] = {}
        self._undone: dict[str, list[_Action]] = {}
        self._seen = 0
        with self._explained("opened"):
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA busy_timeout=5000")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, FORMAT):
                raise DecisionError(
                    f"{path} has format {version}, and this release of tracin reads {FORMAT}. Open "
                    "it with the release that wrote it."
                )
            self._db.execute("PRAGMA journal_mode=WAL")
            # In WAL mode the default may lose the last entries when the power fails.
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(f"{_SCHEMA} PRAGMA user_version={FORMAT};")
            total = self._db.execute("SELECT count(*) FROM log WHERE run != ?", (self.run,))
            self.others = int(total.fetchone()[0])
            self._catch_up()

    @property
    def revision(self) -> int:
        """The number of the last entry that is known here."""
        return self._seen

    @property
    def decided(self) -> int:
        """How many rows are decided about."""
        return int(np.count_nonzero(self.kinds))

    def latest(self, row: int) -> Decision:
        """What holds for a row."""
        return self._latest.get(row, UNDECIDED)

    def holding(self) -> dict[int, Decision]:
        """All rows that are decided about, in their order."""
        with self._lock:
            return {row: one for row, one in sorted(self._latest.items()) if self.kinds[row]}

    def decide(
        self,
        rows: Sequence[int],
        kind: str,
        label: "Cell",
        tab: str,
        seen: Sequence[int] | None = None,
    ) -> None:
        """Decide about some rows at once: all of them, or none.

        Args:
            rows: Which; each once.
            kind: One of `KINDS`.
            label: The new label, for "relabelled" alone.
            tab: Who decides.
            seen: [rows]: the seq of the decision that was last seen of each; None takes any.

        Raises:
            DecidedElsewhereError: A row has a newer decision than was seen.
            DecisionError: A row, kind or label makes no sense, the label is of another kind than
                those of the table, or the disk is full.
        """
        one_of(kind, KINDS, "A decision", DecisionError)
        if (label is not None) != (kind == "relabelled"):
            raise DecisionError(
                f"A new label belongs to 'relabelled', and to nothing else; got {kind!r} with "
                f"{label!r:.60}."
            )
        unknown = [row for row in rows if not 0 <= row < len(self._table)]
        if unknown or not rows or len(set(rows)) < len(rows):
            raise DecisionError(
                f"Rows are numbers from 0 to {len(self._table) - 1}, each once; got {rows!r:.60}."
            )
        new = None if label is None else as_label(label, self._table.given)
        with self._lock, self._writing():
            if seen is not None:
                for row, seq in zip(rows, seen, strict=True):
                    if self.latest(row).seq != seq:
                        raise DecidedElsewhereError(row)
            text = None if new is None else json.dumps(new)
            befores = [self.latest(row).state for row in rows]
            states: list[int | None] = [None] * len(rows)
            self._append(_DECIDED, None, tab, rows, [(kind, text)] * len(rows), befores, states)

    def undo(self, tab: str) -> list[int]:
        """Take back this tab's last action that still holds; its rows, or none."""
        with self._lock, self._writing():
            action = self._last(self._done, tab, _as_left)
            if action is None:
                return []
            self._restore(_UNDONE, action, tab, action.states, action.befores)
        return list(action.rows)

    def redo(self, tab: str) -> list[int]:
        """Do again what this tab last took back, if nothing came since; its rows, or none."""
        with self._lock, self._writing():
            action = self._last(self._undone, tab, _as_found)
            if action is None:
                return []
            self._restore(_REDONE, action, tab, action.befores, action.states)
        return list(action.rows)

    def since(self, seq: int) -> list[int]:
        """The rows with entries after this one, others' included."""
        with self._lock, self._explained("read"):
            self._catch_up()
            found = self._db.execute(
                "SELECT DISTINCT position FROM log WHERE run = ? AND seq > ?", (self.run, seq)
            )
            return [self._row(position) for (position,) in found]

    def recent(self, most: int) -> tuple[int, int]:
        """Of the last so many rows that were decided about: how many there are, and how many wrong.

        A row is wrong if it was called so, or if its new label differs from the given one.
        """
        looked = wrong = 0
        with self._lock:
            for row, one in reversed(self._latest.items()):
                if one.kind == KINDS[0]:
                    continue
                looked += 1
                wrong += self.is_wrong(row, one)
                if looked == most:
                    break
        return looked, wrong

    def is_wrong(self, row: int, decision: Decision) -> bool:
        """Whether a decision says that the given label is wrong."""
        if decision.kind == "relabelled":
            return decision.label != self._table.given[row]
        return decision.kind == "wrong"

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _last(
        self,
        actions: dict[str, list[_Action]],
        tab: str,
        states_of: Callable[[_Action], Sequence[int]],
    ) -> _Action | None:
        """A tab's last action whose rows are all still in these states."""
        for action in reversed(actions.get(tab, [])):
            states = [self.latest(row).state for row in action.rows]
            if states == list(states_of(action)):
                return action
        return None

    def _restore(
        self,
        act: int,
        action: _Action,
        tab: str,
        befores: Sequence[int],
        states: Sequence[int],
    ) -> None:
        contents = [
            self._db.execute("SELECT kind, label FROM log WHERE seq = ?", (state,)).fetchone()
            or (0, None)
            for state in states
        ]
        named = [(KINDS[kind], text) for kind, text in contents]
        self._append(act, action.number, tab, action.rows, named, befores, states)

    def _append(
        self,
        act: int,
        action: int | None,
        tab: str,
        rows: Sequence[int],
        contents: Sequence[tuple[str, str | None]],
        befores: Sequence[int],
        states: Sequence[int | None],
    ) -> None:
        found = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'log'").fetchone()
        following = 1 + (found[0] if found else 0)
        now, first = time.time(), following
        entries = [
            (
                first + at,
                now,
                tab,
                act,
                first if action is None else action,
                self.run,
                id_text(self._table.ids[row]),
                int(self._table.positions[row]),
                KINDS.index(kind),
                text,
                before,
                first + at if state is None else state,
            )
            for at, (row, (kind, text), before, state) in enumerate(
                zip(rows, contents, befores, states, strict=True)
            )
        ]
        marks = ",".join("?" * len(entries[0]))
        self._db.executemany(f"INSERT INTO log VALUES({marks})", entries)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, which begins with all that others have written."""
        with self._explained("written to"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._catch_up()
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            # Only what is on the disk counts here.
            self._catch_up()

    def _catch_up(self) -> None:
        found = self._db.execute(
            "SELECT seq, at, tab, act, action, id, position, kind, label, before, state FROM log "
            "WHERE run = ? AND seq > ? ORDER BY seq",
            (self.run, self._seen),
        ).fetchall()
        grouped: dict[tuple[int, int, str, float], list[tuple[int, int, int]]] = {}
        for seq, at, tab, act, action, of, position, kind, label, before, state in found:
            row = self._row(position)
            if id_text(self._table.ids[row]) != of:
                raise DecisionError(
                    f"Entry {seq} of {self._path} is about id {of}, which is not at position "
                    f"{position}: the file was changed by hand. Restore it from a backup."
                )
            value = None if label is None else json.loads(label)
            self._latest.pop(row, None)
            self._latest[row] = Decision(seq, state, KINDS[kind], value, at)
            self.kinds[row] = kind
            self._seen = seq
            grouped.setdefault((act, action, tab, at), []).append((row, before, state))
        for (act, number, tab, _), entries in grouped.items():
            self._follow(act, number, tab, entries)

    def _follow(
        self, act: int, number: int, tab: str, entries: Sequence[tuple[int, int, int]]
    ) -> None:
        """Keep the lists of what each tab has done and undone."""
        done, undone = self._done.setdefault(tab, []), self._undone.setdefault(tab, [])
        if act == _DECIDED:
            rows, befores, states = zip(*entries, strict=True)
            done.append(_Action(number, rows, befores, states))
            undone.clear()
            return
        source, target = (done, undone) if act == _UNDONE else (undone, done)
        for action in [one for one in source if one.number == number]:
            source.remove(action)
            target.append(action)

    def _row(self, position: int) -> int:
        row = int(np.searchsorted(self._table.positions, position))
        if row == len(self._table) or self._table.positions[row] != position:
            raise DecisionError(
                f"{self._path} has a decision about position {position}, which {self._table.path} "
                "does not hold: the file was changed by hand. Restore it from a backup."
            )
        return row

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DecisionError(
                f"{self._path} cannot be {what}: {error}. Nothing that was decided before is lost; "
                "check the disk, its free space and the permissions."
            ) from error
