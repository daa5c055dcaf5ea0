"""Several worker processes on this machine."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

from tracin.engines.failures import open_failed, start_failed, unit_failed, worker_died
from tracin.engines.gather import Gathering, in_order, numbered
from tracin.engines.hardware import cores, gpu_of, visible_gpus
from tracin.engines.job import Job, Unit, job_bar, missing
from tracin.engines.shares import UnitShares
from tracin.engines.worker import WorkerReport, packed
from tracin.engines.worker_process import WorkerProcess, sigint_blocked
from tracin.errors import IndexingError

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class Processes:
    """Does the units in `count` processes on this machine.

    Each opens the job once and gets its share of the processor's cores; where several GPUs are
    visible, each sees one of them, as cuda:0. A worker that is killed is replaced.

    Attributes:
        count: How many processes.
        retries: How many times a unit that ends its worker is given to another.

    Raises:
        IndexingError: `count` is below 1, or `retries` below 0.

    Example:
        >>> import tracin.engines
        >>> engine = tracin.engines.Processes(4)  # run.index(train, folder, engine=engine)
    """

    count: int
    retries: int = 3

    def __post_init__(self) -> None:
        if self.count < 1:
            raise IndexingError(f"Processes(count) needs at least 1; got {self.count}.")
        if self.retries < 0:
            raise IndexingError(f"retries must be 0 or more; got {self.retries}.")

    def run(self, job: Job, units: Sequence[Unit], progress: bool | None = None) -> None:
        """Do the units that are not done.

        Raises:
            IndexingError: The job cannot be pickled or opened, a unit raised, or its workers died.
        """
        for _ in self._results(job, units, progress):
            pass

    def gather(
        self, work: Callable[[Any], Any], parts: Sequence[Any], progress: bool | None = None
    ) -> list[Any]:
        """What `work` makes of each part, in their order; a killed worker's part is done again.

        Raises:
            IndexingError: Something cannot be pickled, a part raised, or its workers died.
        """
        return in_order(self._results(Gathering(work), numbered(parts), progress))

    def _results(
        self, job: Job, units: Sequence[Unit], progress: bool | None
    ) -> Iterator[tuple[int, Any]]:
        """Do the units; yield each one's place and what it returned, as they finish."""
        places = missing(job, units)
        if not places:
            return
        payload = packed(job, units)
        count = min(self.count, len(places))
        shares = UnitShares(places, [job.weight(units[place]) for place in places], count)
        deaths = Deaths(units, self.retries)
        with job_bar(job, units, places, progress) as shown, worker_pool(payload, count) as pool:
            while pool.pending:
                for worker, report in pool.next_reports():
                    if report is None:
                        if worker.is_closing:
                            continue
                        deaths.add(worker)
                        place = worker.place
                        _log.warning("worker %d ended; another takes its place", worker.slot)
                        if place is not None and job.is_done(units[place]):
                            shown.update(job.weight(units[place]))
                        elif place is not None:
                            shares.give_back(worker.slot, place)
                        pool.start(worker.slot)
                        continue
                    if report.failure is not None:
                        if report.place is None:
                            raise open_failed(report.failure)
                        raise unit_failed(units[report.place], report.failure)
                    deaths.forget_starts()
                    if worker.is_closing:
                        worker.join()
                        continue
                    if report.place is not None:
                        shown.update(job.weight(units[report.place]))
                    pool.assign(worker, shares.take(worker.slot))
                    if report.place is not None:
                        yield report.place, report.result()


@final
@dataclass
class Deaths:
    """Counts how often each unit ended its worker, and how often a worker ended before any."""

    units: Sequence[Unit]
    retries: int
    counts: "Counter[int | None]" = field(default_factory=Counter)

    def add(self, worker: WorkerProcess) -> None:
        """Count a worker that died.

        Raises:
            IndexingError: It was one too many.
        """
        code, place = worker.join() or 0, worker.place
        how = f"had exit code {code}"
        self.counts[place] += 1
        if place is not None:
            if self.counts[place] > self.retries:
                raise worker_died(self.units[place], self.counts[place], how)
        elif not worker.is_open and (
            # Python's own codes are below 128: an error that every other worker would meet as well.
            0 < code < 128 or self.counts[None] > self.retries
        ):
            raise start_failed(how)

    def forget_starts(self) -> None:
        """Workers do reach the job."""
        self.counts[None] = 0


@final
@dataclass
class WorkerPool:
    """The workers of one run, and what each is doing.

    Attributes:
        payload: The job and its units.
        threads: How many threads each worker computes with.
        gpus: The GPUs they share.
        workers: By slot.
        pending: Whose report each future is.
    """

    payload: bytes
    threads: int
    gpus: Sequence[str]
    workers: dict[int, WorkerProcess] = field(default_factory=dict)
    pending: "dict[Future[WorkerReport], WorkerProcess]" = field(default_factory=dict)

    def start(self, slot: int) -> None:
        """Start a worker for a share."""
        worker = WorkerProcess(slot, self.threads, gpu_of(slot, self.gpus))
        self.workers[slot] = worker
        self.pending[worker.open(self.payload)] = worker

    def assign(self, worker: WorkerProcess, place: int | None) -> None:
        """Give a worker its next unit; None for no more."""
        self.pending[worker.close() if place is None else worker.do(place)] = worker

    def next_reports(self) -> Iterator[tuple[WorkerProcess, WorkerReport | None]]:
        """Wait for the next reports; None for a worker that died."""
        for future in wait(self.pending, return_when=FIRST_COMPLETED).done:
            worker = self.pending.pop(future)
            try:
                report = future.result()
            except (BrokenProcessPool, SystemExit):  # it was asked to exit while it sent its report
                yield worker, None
            else:
                worker.is_open, worker.place = True, None
                yield worker, report

    def end(self) -> None:
        """End all workers."""
        with sigint_blocked():
            for worker in self.workers.values():
                worker.terminate()
            for worker in self.workers.values():
                worker.kill()


@contextmanager
def worker_pool(payload: bytes, count: int) -> Iterator[WorkerPool]:
    """Start `count` workers; all have ended when the block is left."""
    pool = WorkerPool(payload, max(1, cores() // count), visible_gpus())
    try:
        for slot in range(count):
            pool.start(slot)
        yield pool
    finally:
        pool.end()
