"""What an engine takes, a job and its units, and what it promises in return."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from tracin.progress import bar

if TYPE_CHECKING:
    from tqdm.auto import tqdm

_log = logging.getLogger(__name__)

Unit: TypeAlias = Any
"""A piece of work that needs no other; engines only pass it on. Hashable and picklable."""


class Job(Protocol):
    """Work in units that write one file each; picklable, so that any process may do a unit."""

    def open(self) -> AbstractContextManager[Callable[[Unit], object]]:
        """Load what all units need, once per worker; the function it yields does one unit."""
        ...

    def weight(self, unit: Unit) -> int:
        """How many examples a unit has."""
        ...

    def is_done(self, unit: Unit) -> bool:
        """Whether a unit's file exists."""
        ...


class Engine(Protocol):
    """Does the units of a job that are not done yet."""

    def run(self, job: Job, units: Sequence[Unit], progress: bool | None = None) -> None:
        """Return when this engine's share of the units is done.

        Pass all units, also those that are done: engines skip them, and all ranks must see the
        same list. Neighbours in the list go to one worker where possible, so list the units of one
        checkpoint side by side.

        Args:
            job: What does a unit.
            units: The units, in the order of their checkpoints.
            progress: Whether to show a bar; None shows it only on a terminal.

        Raises:
            IndexingError: A unit raised, or its worker died too often; what is done stays.
        """
        ...


def missing(job: Job, units: Sequence[Unit]) -> list[int]:
    """The places of the units that are not done."""
    left = [place for place, unit in enumerate(units) if not job.is_done(unit)]
    _log.info("%d of %d units are still to be done", len(left), len(units))
    return left


def job_bar(
    job: Job, units: Sequence[Unit], places: Sequence[int], progress: bool | None
) -> "tqdm[Any]":
    """A bar over all units, counted in examples; only those at `places` are still to be done."""
    total = sum(job.weight(unit) for unit in units)
    left = sum(job.weight(units[place]) for place in places)
    return bar(total, "index", progress, done=total - left, is_kept=True, is_scaled=True)
