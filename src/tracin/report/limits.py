"""How much a report shows, so that its file stays small enough to send and to open."""

from dataclasses import dataclass
from typing import final

LARGEST = 10_000_000  # bytes of a report


@final
@dataclass(frozen=True)
class PageLimits:
    """The most that a report shows of each kind.

    Attributes:
        queries: Queries of an explanation.
        hits: Proponents, and as many opponents, per query.
        suspects: Rows of suspects.
        side: Pixels of a picture's longer side.
    """

    queries: int = 32
    hits: int = 20
    suspects: int = 300
    side: int = 64

    def halved(self) -> "PageLimits":
        """Half as many of each, and at least one; pictures stay as large."""
        halves = (max(1, each // 2) for each in (self.queries, self.hits, self.suspects))
        return PageLimits(*halves, side=self.side)

    @property
    def is_least(self) -> bool:
        """Whether there is nothing left to halve."""
        return self.queries == self.hits == self.suspects == 1
