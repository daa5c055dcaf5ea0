"""Which rows a page asks for, and in which order: checked once, at the door."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from tracin.checks import one_of
from tracin.decisions.cells import Cell, as_label
from tracin.decisions.log import KINDS
from tracin.decisions.ranked_table import RankedTable
from tracin.errors import QueryError

MOST_ROWS = 200
_LONGEST = 200
_LARGEST = 1 << 53  # what a number of a page holds exactly


@final
@dataclass(frozen=True)
class RowRequest:
    """A choice of rows. Hashable: it is the key of a view.

    Attributes:
        sort: A score, or "" for the order of the file.
        is_down: Whether the most suspicious come first.
        given: The given label; None for all.
        suggested: The suggested label; None for all.
        differs: Whether only rows with another suggested label.
        words: What an id, a label or a text contains.
        decided: One of `KINDS`, or "" for all.
        of: The revision of the decisions that `decided` was asked at, so that the rows stand still
            while a person works through them.
    """

    sort: str = ""
    is_down: bool = True
    given: Cell = None
    suggested: Cell = None
    differs: bool = False
    words: str = ""
    decided: str = ""
    of: int = 0

    @classmethod
    def parsed(cls, asked: Mapping[str, str], table: RankedTable) -> "RowRequest":
        """From the parameters of a URL.

        Raises:
            QueryError: One of them means nothing.
            DecisionError: A label is of another kind than those of the table.
        """
        sort, decided = asked.get("sort", ""), asked.get("decided", "")
        one_of(sort, ("", *table.scores), "sort", QueryError)
        one_of(decided, ("", *KINDS), "decided", QueryError)
        if table.suggested is None and (asked.get("suggested") or asked.get("differs") == "1"):
            raise QueryError("The table has no suggested labels to choose by.")
        return cls(
            sort,
            asked.get("down", "1") == "1",
            as_label(asked["given"], table.given) if asked.get("given") else None,
            as_label(asked["suggested"], table.given) if asked.get("suggested") else None,
            asked.get("differs") == "1",
            asked.get("words", "")[:_LONGEST].strip(),
            decided,
            number_within(asked, "of", 0, 0, _LARGEST) if decided else 0,
        )


def number_within(asked: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """A whole number of a URL, moved into the range.

    Raises:
        QueryError: It is no number.

    Example:
        >>> number_within({"n": "500"}, "n", 100, 1, 200)
        200
    """
    text = asked.get(name, str(default))
    # Few digits: Python takes quadratic time for many.
    if not text.lstrip("-").isdecimal() or len(text) > 20:
        raise QueryError(f"{name} is a whole number; got {text!r:.40}.")
    return min(max(int(text), low), high)
