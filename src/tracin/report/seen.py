"""The examples of a report, as a person sees them: fetched from the user's data once each."""

from collections.abc import Iterable, Sequence
from typing import Any, final

from tracin.report.card import Card, card_of, label_text
from tracin.results.shown import Showing
from tracin.results.shown_rows import shown_queries, shown_rows


@final
class Seen:
    """The cards of training examples and queries.

    Args:
        train: The training data; None where only ids are known.
        queries: The data of the queries; None where only their ids are known.
        how: How an example becomes a `Shown`.
        side: Pixels of a picture's longer side.
    """

    def __init__(self, train: Any, queries: Any, how: Showing, side: int) -> None:
        self._train, self._queries, self._how, self._side = train, queries, how, side
        self._cards: dict[int, Card] = {}

    def fetch(self, positions: Iterable[int], ids: Iterable[Any]) -> None:
        """Read training examples that will be shown, all in one go.

        Raises:
            DataError: The data is not the one that the results are about.
        """
        wanted = {
            int(position): each
            for position, each in zip(positions, ids, strict=True)
            if int(position) not in self._cards
        }
        if self._train is None or not wanted:
            return
        rows = shown_rows(self._train, list(wanted), list(wanted.values()), self._how)
        for (position, each), shown in zip(wanted.items(), rows, strict=True):
            self._cards[position] = card_of(shown, f"example {label_text(each)}", self._side)

    def train(self, position: int, id_: Any) -> Card:
        """The card of a training example."""
        if self._train is None:
            return card_of(None, f"example {label_text(id_)}", self._side)
        self.fetch([position], [id_])
        return self._cards[position]

    def queries(self, ids: Sequence[Any]) -> list[Card | None]:
        """The cards of some queries; None where the data does not have them."""
        if self._queries is None:
            return [None] * len(ids)
        return [
            None if shown is None else card_of(shown, f"query {label_text(each)}", self._side)
            for each, shown in zip(ids, shown_queries(self._queries, ids, self._how), strict=True)
        ]

    def label(self, label: Any) -> str:
        """A label as it is read."""
        return label_text(self._how.label(label))
