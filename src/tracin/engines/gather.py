"""Work whose parts give results: an engine's workers do the parts, and all results come back."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, final


class Gatherer(Protocol):
    """Does the parts of some work, and gives what they return."""

    def gather(
        self, work: Callable[[Any], Any], parts: Sequence[Any], progress: bool | None = None
    ) -> list[Any]:
        """The results, in the order of the parts.

        Args:
            work: Makes a result of a part, in any process: it, parts and results are pickled.
            parts: What it is called with.
            progress: Whether to show a bar; None shows it on a terminal alone.

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
    """Work as a job: its units leave no files, so none is done before."""

    work: Callable[[Any], Any]

    @contextmanager
    def open(self) -> Iterator[Callable[[Part], Any]]:
        """Gives what does a part."""
        yield self.done

    def done(self, part: Part) -> Any:
        """A part's result."""
        return self.work(part.content)

    def weight(self, unit: Part) -> int:
        """All parts count alike."""
        return 1

    def is_done(self, unit: Part) -> bool:
        """Never before it comes back."""
        return False


def numbered(parts: Sequence[Any]) -> list[Part]:
    """Parts that know which they are."""
    return [Part(number, len(parts), part) for number, part in enumerate(parts)]


def in_order(results: Iterable[tuple[int, Any]]) -> list[Any]:
    """Results by their places."""
    found = dict(results)
    return [found[place] for place in sorted(found)]
