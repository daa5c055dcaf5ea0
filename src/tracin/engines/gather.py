"""Work whose parts return results: an engine's workers do the parts, and the results come back."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, final


class Gatherer(Protocol):
    """Does the parts of some work, and returns their results."""

    def gather(
        self, work: Callable[[Any], Any], parts: Sequence[Any], progress: bool | None = None
    ) -> list[Any]:
        """The results, in the order of the parts.

        Args:
            work: Returns the result of one part, in any process: `work`, parts and results are
                pickled.
            parts: What `work` is called with.
            progress: Whether to show a bar; None shows it only on a terminal.

        Raises:
            IndexingError: A part raised, or its worker died too often.
        """
        ...


@final
@dataclass(frozen=True)
class Part:
    """One part, as a unit of a job."""

    number: int
    of: int
    content: Any

    def __str__(self) -> str:
        return f"Part {self.number + 1} of {self.of}"


@final
@dataclass(frozen=True)
class Gathering:
    """Work as a job: its units leave no files, so none is ever done already."""

    work: Callable[[Any], Any]

    @contextmanager
    def open(self) -> Iterator[Callable[[Part], Any]]:
        """Yield the function that does a part."""
        yield self.do

    def do(self, part: Part) -> Any:
        """A part's result."""
        return self.work(part.content)

    def weight(self, unit: Part) -> int:
        """All parts count alike."""
        return 1

    def is_done(self, unit: Part) -> bool:
        """Never: only its result tells."""
        return False


def numbered(parts: Sequence[Any]) -> list[Part]:
    """Parts with their numbers."""
    return [Part(number, len(parts), part) for number, part in enumerate(parts)]


def in_order(results: Iterable[tuple[int, Any]]) -> list[Any]:
    """Results in the order of their places."""
    by_place = dict(results)
    return [by_place[place] for place in sorted(by_place)]
