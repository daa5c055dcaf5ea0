"""One bar over all units of a job, counted in examples, with the time left."""

from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from tracin.engines.job import Job, Unit


def missing(job: Job, units: Sequence[Unit]) -> list[int]:
    """The places of the units that are not done."""
    return [place for place, unit in enumerate(units) if not job.is_done(unit)]


def bar(
    job: Job, units: Sequence[Unit], places: Sequence[int], progress: bool | None
) -> "tqdm[Any]":
    """A bar on which all units count, and only those at `places` are still to be done."""
    total = sum(job.weight(unit) for unit in units)
    left = sum(job.weight(units[place]) for place in places)
    disable = None if progress is None else not progress
    # As `initial`, finished units do not count as speed, so the time left is right from the start.
    return tqdm(
        total=total, initial=total - left, desc="index", unit="ex", unit_scale=True, disable=disable
    )
