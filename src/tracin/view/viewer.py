"""A folder opened for looking at: its ranking, decisions, examples, and what explains them."""

import ctypes
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from tracin.decisions.cells import Cell
from tracin.decisions.log import DecisionLog
from tracin.decisions.ranked_table import ROWS, RankedTable, ranked_table_in, settings_of
from tracin.plain_text import plain
from tracin.view.examples import ShownExamples
from tracin.view.explainer import Explainer, Hit, RowExplanation
from tracin.view.row_views import LOW, RowViews

CLASSES = 1000  # more labels than that are typed, not chosen from a list
EXCERPT, WHOLE = 300, 5000  # letters of a text in the table, and of the example looked at
LAST = 50
ORDINARY = ("results", "index")  # names of folders that say nothing of a run
ALIKE = 100
LARGE = 1 << 21  # bytes from which an array is given back as soon as it is freed
_MMAP_THRESHOLD = -3  # as malloc.h names it


@final
class Viewer:
    """All that the page shows, as values that JSON can hold, safe to be shown as they are.

    Args:
        folder: A run's folder, its results, an index, or a Parquet file.
        index: The index that explains rows; None looks for it next to the ranking.
        names: What the classes 0, 1, ... are called.

    Raises:
        DecisionError: The folder holds no ranking, or a file cannot be read.
    """

    def __init__(
        self, folder: str | Path, index: str | None = None, names: Sequence[str] = ()
    ) -> None:
        self.table = ranked_table_in(folder)
        self.log = DecisionLog(self.table.log, self.table)
        self.examples = ShownExamples(self.table)
        self.views = RowViews(self.table, self.examples)
        self._names, self._is_prepared = tuple(names), False
        where = found_index(self.table) if index is None else index
        self.explainer = None if where is None else Explainer(where, self.table)
        places = [each.name for each in self.table.path.absolute().parents]
        self.title = plain(next((one for one in places if one not in ORDINARY), places[0]))

    def prepare(self) -> None:
        """Begin to read, on a thread of its own, what the next clicks will need."""
        if not self._is_prepared:
            self._is_prepared = True
            threading.Thread(target=self._prepared, name="tracin ranking", daemon=True).start()

    def close(self) -> None:
        """End the search that is going on, and close the log."""
        if self.explainer is not None:
            self.explainer.close()
        self.log.close()

    def about(self) -> dict[str, Any]:
        """What the page needs to know once."""
        table = self.table
        distinct = table.given.distinct(CLASSES) if self._has_classes else None
        if distinct is not None and table.suggested is not None:
            more = table.suggested.distinct(CLASSES)
            both = {*distinct, *more} if more is not None else None
            distinct = None if both is None else sorted(both, key=lambda one: (str(type(one)), one))
        return {
            "title": self.title,
            "total": len(table),
            "sorts": [{"name": name, "low": name in LOW} for name in table.scores],
            "leading": self.views.leading,
            "labels": None if distinct is None else [self._label(one) for one in distinct],
            "suggests": table.suggested is not None,
            "pictures": self.examples.has_pictures,
            "explains": self.explainer is not None,
            "others": self.log.others,
        }

    def progress(self) -> dict[str, int]:
        """How far the person is."""
        looked, wrong = self.log.recent(LAST)
        return {
            "decided": self.log.decided,
            "looked": looked,
            "wrong": wrong,
            "seq": self.log.revision,
        }

    def row(self, row: int) -> dict[str, Any]:
        """One line of the table."""
        table, now = self.table, self.log.latest(row)
        text = self.examples.text(row)
        return {
            "row": row,
            "position": int(table.positions[row]),
            "id": plain(table.ids[row])[:200],
            "given": self._label(table.given[row]),
            "suggested": None if table.suggested is None else self._label(table.suggested[row]),
            "disagrees": bool(self.views.disagreeing[row]),
            "scores": {name: _finite(table.score(name)[row]) for name in table.scores},
            "text": None if text is None else plain(text[:EXCERPT]),
            "picture": self.examples.has_picture(row),
            "seq": now.seq,
            "kind": now.kind,
            "label": None if now.label is None else self._label(now.label),
        }

    def example(self, row: int) -> dict[str, Any]:
        """One example at length: its text, and rows of which the text is the same."""
        text = self.examples.text(row)
        shown = None if text is None else "\n".join(map(plain, text[:WHOLE].split("\n")))
        alike = self.examples.alike(row, ALIKE)
        return {
            **self.row(row),
            "whole": shown,
            "length": 0 if text is None else len(text),
            "alike": [self._seen(one) for one in alike],
        }

    def explanation(self, row: int, found: RowExplanation, k: int) -> dict[str, Any]:
        """What explains a row."""
        return {
            "row": row,
            "proponents": [self._hit(one) for one in found.proponents[:k]],
            "opponents": [self._hit(one) for one in found.opponents[:k]],
            "checkpoints": [plain(name)[:200] for name in found.checkpoints],
            "note": plain(found.note),
            "alike": [self._seen(one) for one in found.alike()],
        }

    def _hit(self, hit: Hit) -> dict[str, Any]:
        return {
            "id": plain(hit.id)[:200],
            "score": _finite(hit.score),
            "error": _finite(hit.error),
            "by_checkpoint": [_finite(one) for one in hit.by_checkpoint],
            "of": None if hit.row is None else self.row(hit.row),
        }

    def _seen(self, row: int) -> dict[str, int]:
        return {"row": row, "seq": self.log.latest(row).seq}

    @property
    def _has_classes(self) -> bool:
        return self.table.given.is_text or self.table.given.is_whole

    def _label(self, value: Cell) -> dict[str, Any]:
        """A label as it is, and as it is shown."""
        if isinstance(value, float):
            return {"value": _finite(value), "shown": f"{value:.6g}"}
        shown = plain("none" if value is None else value)[:200]
        if isinstance(value, int) and 0 <= value < len(self._names):
            shown = f"{shown} {plain(self._names[value])[:200]}"
        return {"value": value, "shown": shown}

    def _prepared(self) -> None:
        import pyarrow.compute  # noqa: F401  # imported here, so that the first search does not wait

        self.views.prepare()
        self.examples.load()


def give_memory_back() -> None:
    """Let Arrow, NumPy and torch return what they no longer need to the system.

    Arrow's own pool keeps 100 MB of a million rows. glibc keeps another 60: once a large array was
    freed, it takes the next ones of that size from a heap that cannot shrink past the last of
    them. A fixed threshold keeps large arrays out of it:
    https://www.man7.org/linux/man-pages/man3/mallopt.3.html
    """
    import pyarrow

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # a C library without mallopt
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, LARGE)


def found_index(table: RankedTable) -> str | None:
    """The index of a ranking: the table's own, or where its settings say, or beside it."""
    place = table.path.absolute().parent
    named = settings_of(table.path).get("index")
    folder = named.get("folder") if isinstance(named, dict) else None
    folder = folder if isinstance(folder, str) else "index"
    if "://" in folder:
        return None  # what a file says must not make requests; --index does
    places = [place / "index", place.parent / folder]
    if table.path.name == ROWS:
        places.insert(0, place)
    return next((str(one) for one in places if (one / "manifest.json").is_file()), None)


def _finite(value: Any) -> float | None:
    """JSON has no NaN and no infinity."""
    number = float(value)
    return number if abs(number) < float("inf") else None
