"""A million rows, sorted and filtered in memory: a view is a fixed array of row numbers."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import final

import numpy as np

from tracin.decisions.log import KINDS
from tracin.decisions.ranked_table import RankedTable
from tracin.view.examples import ShownExamples
from tracin.view.row_request import RowRequest

# Scores of which low values are suspicious, and those that are so far from 0; see `Suspects`.
LOW = frozenset({"margin", "final_margin", "aum", "given_probability"})
USUAL = (
    "loss_and_margin",
    "residual",
)  # what find_mislabelled ranks by unless it is told otherwise
FAR = frozenset({"residual", "final_residual"})
PROBABILITIES = ("given_probability", "suggested_probability")
VIEWS, ORDERS = 8, 4  # how many are kept
_LOOKED_AT = 2000  # rows that say which score leads


@final
class RowViews:
    """Sorts and filters the rows of a table, and keeps what was asked last.

    Of a million rows an order takes 4 MB and a fifth of a second: few are kept, and none is made
    before it is asked for.

    Args:
        table: The rows.
        examples: Their texts, for finding words.
    """

    def __init__(self, table: RankedTable, examples: ShownExamples) -> None:
        self._table, self._examples = table, examples
        self._orders: OrderedDict[str, np.ndarray] = OrderedDict()
        self._views: OrderedDict[RowRequest, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self.leading = self._leading()

    def view(self, request: RowRequest, kinds: np.ndarray) -> np.ndarray:
        """The rows that fit, in their order: [found], int32.

        Args:
            request: Which.
            kinds: [rows]: what was decided about each, as a `DecisionLog` has it.
        """
        with self._lock:
            if request not in self._views:
                self._views[request] = self._found(request, kinds)
                if len(self._views) > VIEWS:
                    self._views.popitem(last=False)
            self._views.move_to_end(request)
            return self._views[request]

    @functools.cached_property
    def disagreeing(self) -> np.ndarray:
        """Whether the model would say otherwise: [rows], bool; all False without suggestions.

        A table with probabilities suggests another label for every example, however unlikely.
        """
        table = self._table
        if table.suggested is None:
            return np.zeros(len(table), dtype=bool)
        found = table.given.differing(table.suggested)
        if set(PROBABILITIES) <= set(table.scores):
            found &= table.score(PROBABILITIES[1]) > table.score(PROBABILITIES[0])
        return found

    def prepare(self) -> None:
        """Read every score, so that nobody waits for it later."""
        for name in self._table.scores:
            self._table.score(name)

    def _found(self, request: RowRequest, kinds: np.ndarray) -> np.ndarray:
        order = self._order(request.sort)
        keep = None
        for one in self._filters(request, kinds):
            keep = one if keep is None else keep & one
        found = order if keep is None else order[keep[order]]
        return found if request.is_down else self._reversed(request.sort, found)

    def _order(self, name: str) -> np.ndarray:
        if not name:
            return self._table.ranked
        if name not in self._orders:
            suspicion = suspicion_of(name, self._table.score(name))
            # Stable: equal values keep the data's order. NaN comes last.
            self._orders[name] = np.argsort(-suspicion, kind="stable").astype(np.int32)
            if len(self._orders) > ORDERS:
                self._orders.popitem(last=False)
        self._orders.move_to_end(name)
        return self._orders[name]

    def _reversed(self, name: str, found: np.ndarray) -> np.ndarray:
        if not name:
            return found[::-1]
        known = ~np.isnan(self._table.score(name)[found])
        return np.concatenate([found[known][::-1], found[~known]])

    def _filters(self, request: RowRequest, kinds: np.ndarray) -> Iterator[np.ndarray]:
        table = self._table
        if request.given is not None:
            yield table.given.equal(request.given)
        if table.suggested is not None:
            if request.suggested is not None:
                yield table.suggested.equal(request.suggested)
            if request.differs:
                yield self.disagreeing
        if request.words:
            found = table.ids.containing(request.words)
            if table.given.is_text:
                found = found | table.given.containing(request.words)
            yield found | self._examples.containing(request.words)
        if request.decided:
            yield kinds == KINDS.index(request.decided)

    def _leading(self) -> str:
        """The score that the file is ranked by, as far as its first rows say; "" for none."""
        first = self._table.ranked[:_LOOKED_AT]
        # With two classes several columns give the order of the usual one.
        usual = [name for name in USUAL if name in self._table.scores]
        for name in [*usual, *self._table.scores]:
            suspicion = suspicion_of(name, self._table.score(name)[first])
            if len(first) > 1 and bool((np.diff(suspicion) <= 0).all()):
                return name
        return self._table.scores[0] if self._table.scores else ""


def suspicion_of(name: str, values: np.ndarray) -> np.ndarray:
    """How suspicious the values of a score are: high is more so.

    Example:
        >>> suspicion_of("margin", np.array([0.5, -0.5])).tolist()
        [-0.5, 0.5]
    """
    if name in LOW:
        return -values
    return np.abs(values) if name in FAR else values
