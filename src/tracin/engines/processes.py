"""Several worker processes on this machine."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Any, final

from tracin.engines import failures
from tracin.engines.gather import Gathering, in_order, numbered
from tracin.engines.gpus import gpu_of, visible_gpus
from tracin.engines.interrupts import held
from tracin.engines.job import Job, Unit, job_bar, missing
from tracin.engines.packed import packed
from tracin.engines.shares import Shares
from tracin.engines.threads import cores
from tracin.engines.worker import Report, returned, serve
from tracin.errors import IndexingError

GRACE = 5.0  # seconds that a worker has to take its unfinished file away


@final
@dataclass(frozen=True)
class Processes:
    """Does the units in `count` processes on this machine.

    Each opens the job once and gets its part of the processor's cores; where several GPUs are
    visible, each sees one of them, as cuda:0. A worker that is killed is replaced.

    Attributes:
        count: How many processes.
        retries: How many times a unit may outlive its worker, and be given to another.

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
            raise IndexingError(f"Processes(count) needs at least 1; {self.count} was given.")
        if self.retries < 0:
            raise IndexingError(f"retries counts from 0; {self.retries} was given.")

    def run(self, job: Job, units: Sequence[Unit], progress: bool | None = None) -> None:
        """Do the units that are not done.

        Raises:
            IndexingError: The job cannot be pickled or opened, a unit raised, or its workers died.
        """
        for _ in self.results(job, units, progress):
            pass

    def gather(
        self, work: Callable[[Any], Any], parts: Sequence[Any], progress: bool | None = None
    ) -> list[Any]:
        """What `work` makes of each part, in their order; a killed worker's part is done again.

        Raises:
            IndexingError: Something cannot be pickled, a part raised, or its workers died.
        """
        return in_order(self.results(Gathering(work), numbered(parts), progress))

    def results(
        self, job: Job, units: Sequence[Unit], progress: bool | None
    ) -> Iterator[tuple[int, Any]]:
        """Do the units; each one's place and what it returned, as they come."""
        places = missing(job, units)
        if not places:
            return
        payload = packed(job, units)
        count = min(self.count, len(places))
        shares = Shares(places, [job.weight(units[place]) for place in places], count)
        deaths: Counter[int | None] = Counter()
        with job_bar(job, units, places, progress) as shown, crew(payload, count) as at_work:
            while at_work.workers:
                for worker in at_work.waited():
                    for report in worker.reports():
                        if report.failure is not None:
                            if report.place is None:
                                raise failures.not_opened(report.failure)
                            raise failures.raised(units[report.place], report.failure)
                        if report.place is not None:
                            shown.update(job.weight(units[report.place]))
                        deaths[None] = 0
                        worker.order(shares.take(worker.slot))
                        if report.place is not None:
                            yield report.place, returned(report)
                    if worker.process.is_alive():
                        continue
                    at_work.bury(worker)
                    if worker.is_dismissed:
                        continue
                    self.check(worker, units, deaths)
                    place = worker.place
                    if place is not None and job.is_done(units[place]):
                        shown.update(job.weight(units[place]))
                    elif place is not None:
                        shares.give_back(worker.slot, place)
                    at_work.hire(worker.slot)

    def check(self, worker: "Worker", units: Sequence[Unit], deaths: "Counter[int | None]") -> None:
        """Count a worker's death.

        Raises:
            IndexingError: It was one too many.
        """
        deaths[worker.place] += 1
        how = f"had exit code {worker.process.exitcode}"
        if worker.place is not None:
            if deaths[worker.place] > self.retries:
                raise failures.died(units[worker.place], deaths[worker.place], how)
        elif not worker.is_ready and (
            # Python's own codes are below 128: an error that every other worker would meet as well.
            0 < (worker.process.exitcode or 0) < 128 or deaths[None] > self.retries
        ):
            raise failures.not_started(how)


@final
@dataclass(eq=False)
class Worker:
    """A worker process, seen from here.

    Attributes:
        slot: Whose share it does.
        process: The process.
        line: The way to it and back.
        place: The unit that it has in hand.
        is_ready: Whether it has opened the job.
        is_dismissed: Whether it was told that there is no more.
    """

    slot: int
    process: SpawnProcess
    line: connection.Connection
    place: int | None = None
    is_ready: bool = False
    is_dismissed: bool = False

    def reports(self) -> Iterator[Report]:
        """What it has said and nobody heard yet."""
        try:
            while self.line.poll():
                report = self.line.recv()
                self.is_ready = True
                self.place = None
                yield report
        except (EOFError, OSError):
            # Its end of the line is closed: it has ended, or is about to.
            self.process.join()

    def order(self, place: int | None) -> None:
        """Give it a unit; None when there is no more."""
        self.place = place
        self.is_dismissed = place is None
        try:
            self.line.send(place)
        except OSError:
            self.process.join()


@final
@dataclass
class WorkerPool:
    """The workers that are there."""

    payload: bytes
    threads: int
    gpus: Sequence[str]
    workers: list[Worker] = field(default_factory=list)

    def hire(self, slot: int) -> None:
        """Start a worker for a share."""
        here, there = multiprocessing.Pipe()
        # Its helper process unblocks SIGINT as it starts, so it must be there before.
        resource_tracker.ensure_running()
        with held():
            process = multiprocessing.get_context("spawn").Process(
                target=serve,
                args=(self.payload, there, self.threads, gpu_of(slot, self.gpus)),
                name=f"tracin worker {slot}",
            )
            process.start()
            self.workers.append(Worker(slot, process, here))
        there.close()

    def waited(self) -> list[Worker]:
        """The workers that have spoken or died; waits until there is one."""
        ways = {one.process.sentinel: one for one in self.workers} | {
            one.line: one for one in self.workers
        }
        return list(dict.fromkeys(ways[way] for way in connection.wait(list(ways))))  # type: ignore

    def bury(self, worker: Worker) -> None:
        """Let go of a worker that has ended."""
        worker.process.join()
        worker.line.close()
        self.workers.remove(worker)

    def end(self) -> None:
        """End all that are there."""
        with held():
            for worker in self.workers:
                worker.process.terminate()
            for worker in self.workers:
                worker.process.join(GRACE)
                if worker.process.is_alive():
                    worker.process.kill()
            for worker in list(self.workers):
                self.bury(worker)


@contextmanager
def crew(payload: bytes, count: int) -> Iterator[WorkerPool]:
    """As many workers; none is there on leaving."""
    found = WorkerPool(payload, max(1, cores() // count), visible_gpus())
    try:
        for slot in range(count):
            found.hire(slot)
        yield found
    finally:
        found.end()
