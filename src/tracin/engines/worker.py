"""A worker: opens the job once, does the units it is given, and reports on each.

Jobs, units and results travel by cloudpickle, which also takes lambdas, and the functions and
classes of a notebook.
"""

import pickle
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final

import cloudpickle

from tracin.engines.hardware import use_threads
from tracin.engines.job import Job, Unit
from tracin.errors import IndexingError


def packed(job: Job, units: Sequence[Unit]) -> bytes:
    """A job and its units as bytes, for a `Worker` in another process."""
    try:
        return cloudpickle.dumps((job, tuple(units)))
    except Exception as error:
        raise IndexingError(
            "Workers need a job that can be pickled, and this one cannot be: "
            f"{type(error).__name__}: {error}. Model, loss and data must hold no locks, open files "
            "or generators; or use tracin.engines.Serial()."
        ) from error


@final
@dataclass(frozen=True)
class WorkerReport:
    """The job is open or closed, or a unit is done; with a `failure`, the opposite.

    Attributes:
        place: Which unit; None for opening or closing the job.
        failure: The traceback.
        packed_result: What the unit returned, pickled here: torch would share memory that ends
            with the worker. None for None.
    """

    place: int | None
    failure: str | None = None
    packed_result: bytes | None = None

    def result(self) -> Any:
        """What the unit returned."""
        return None if self.packed_result is None else pickle.loads(self.packed_result)


@final
class Worker:
    """Opens a job, and does its units.

    Attributes:
        threads: How many threads it computes with.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._stack = ExitStack()
        self._units: tuple[Unit, ...] = ()
        self._build: Callable[[Unit], object] | None = None

    def open(self, payload: Callable[[], bytes]) -> WorkerReport:
        """Open the job that `packed` packed, unless it is open."""
        if self._build is None:
            try:
                use_threads(self.threads)
                job, self._units = pickle.loads(payload())
                self._build = self._stack.enter_context(job.open())
                use_threads(self.threads)  # the user's code may have set another number
            except Exception:
                return WorkerReport(None, traceback.format_exc())
        return WorkerReport(None)

    def do(self, place: int) -> WorkerReport:
        """Do the unit at a place of the open job."""
        if self._build is None:
            raise RuntimeError("the job is not open")
        try:
            result = self._build(self._units[place])
            return WorkerReport(place, None, None if result is None else cloudpickle.dumps(result))
        except Exception:
            return WorkerReport(place, traceback.format_exc())

    def close(self) -> WorkerReport:
        """Close the job, if it is open."""
        self._build = None
        try:
            self._stack.close()
        except Exception:
            return WorkerReport(None, traceback.format_exc())
        return WorkerReport(None)
