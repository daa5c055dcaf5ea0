"""All units in this process, in order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from tracin.engines.failures import unit_failed
from tracin.engines.job import Job, Unit, job_bar, missing


@final
@dataclass(frozen=True)
class Serial:
    """Does the units in this process, in their order.

    Example:
        >>> import tracin.engines
        >>> engine = tracin.engines.Serial()  # run.index(train, folder, engine=engine)
    """

    def gather(
        self, work: Callable[[Any], Any], parts: Sequence[Any], progress: bool | None = None
    ) -> list[Any]:
        """What `work` makes of each part, in order."""
        return [work(part) for part in parts]

    def run(self, job: Job, units: Sequence[Unit], progress: bool | None = None) -> None:
        """Do the units that are not done.

        Raises:
            IndexingError: A unit raised an error, which is the cause of this one.
        """
        build_units(job, units, missing(job, units), progress)


def build_units(
    job: Job, units: Sequence[Unit], places: Sequence[int], progress: bool | None
) -> None:
    """Do the units at these places, in order."""
    if not places:
        return
    with job_bar(job, units, places, progress) as shown, job.open() as build:
        for place in places:
            build_unit(build, units[place])
            shown.update(job.weight(units[place]))


def build_unit(build: Callable[[Unit], object], unit: Unit) -> None:
    """Do a unit; an error names it.

    Raises:
        IndexingError: The unit raised an error, which is the cause of this one.
    """
    try:
        build(unit)
    except Exception as error:
        raise unit_failed(unit, f"{type(error).__name__}: {error}") from error
