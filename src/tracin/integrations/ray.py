"""Workers on a Ray cluster, one actor each."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, final

from tracin.engines.failures import open_failed, unit_failed, worker_died
from tracin.engines.gather import Gathering, in_order, numbered
from tracin.engines.job import Job, Unit, job_bar, missing
from tracin.engines.shares import UnitShares
from tracin.engines.worker import Worker, WorkerReport, packed
from tracin.errors import IndexingError
from tracin.extras import install_line

_log = logging.getLogger(__name__)
# Units write files and return nothing: the object store only holds the job.
SMALL_STORE = 256 * 1024**2
PATIENCE = 60.0  # seconds without a worker before a warning


@final
@dataclass(frozen=True)
class RayCluster:
    """Does the units in Ray actors; extra `ray`.

    An open Ray session is used and left open; otherwise one is opened, on the cluster at `address`
    or on this machine only, and closed again. A killed worker is restarted, on another machine if
    need be. Workers must see the same files, and have tracin and your modules.

    Attributes:
        address: "auto" for RAY_ADDRESS or for the cluster of this machine, "ray://host:10001" or
            "host:6379"; None for a new session on this machine.
        workers: How many; None starts as many as the cluster has room for.
        cpus_per_worker: Cores per worker.
        gpus_per_worker: GPUs per worker; 0.5 puts two workers on one GPU.
        retries: How many times a unit that ends its worker is given to another.

    Raises:
        IndexingError: A number is too small.

    Example:
        >>> import tracin.engines
        >>> from tracin.integrations.ray import RayCluster
        >>> engine = RayCluster("auto", gpus_per_worker=1)
    """

    address: str | None = None
    workers: int | None = None
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    retries: int = 3

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise IndexingError(f"workers must be at least 1, or None; got {self.workers}.")
        if self.cpus_per_worker <= 0 or self.gpus_per_worker < 0 or self.retries < 0:
            raise IndexingError(
                "cpus_per_worker must be above 0, gpus_per_worker and retries 0 or more; got "
                f"{self.cpus_per_worker}, {self.gpus_per_worker} and {self.retries}."
            )

    def run(self, job: Job, units: Sequence[Unit], progress: bool | None = None) -> None:
        """Do the units that are not done.

        Raises:
            IndexingError: Ray is not installed or does not answer, the job cannot be pickled or
                opened, a unit raised, or its workers died.
        """
        for _ in self.results(job, units, progress):
            pass

    def gather(
        self, work: Callable[[Any], Any], parts: Sequence[Any], progress: bool | None = None
    ) -> list[Any]:
        """What `work` makes of each part, in their order; a killed worker's part is done again.

        Raises:
            IndexingError: Ray is not installed or does not answer, something cannot be pickled, a
                part raised, or its workers died.
        """
        return in_order(self.results(Gathering(work), numbered(parts), progress))

    def results(
        self, job: Job, units: Sequence[Unit], progress: bool | None
    ) -> Iterator[tuple[int, Any]]:
        """Do the units; yield each one's place and what it returned, as they finish."""
        places = missing(job, units)
        if not places:
            return
        ray = import_ray()
        payload = packed(job, units)
        weights = [job.weight(units[place]) for place in places]
        with (
            self.session(ray, len(payload)),
            self.actors(ray, len(places)) as actors,
            job_bar(job, units, places, progress) as shown,
        ):
            # In a list Ray hands on the reference alone; a worker fetches the bytes as it opens the
            # job. As an argument of its constructor they could be gone when it starts again.
            stored = [ray.put(payload)]
            shares = UnitShares(places, weights, len(actors))
            # A worker gets a unit once it runs: one that the cluster has no room for gets none.
            at_work: dict[Any, tuple[int, int | None]] = {
                actor.open.remote(stored): (slot, None) for slot, actor in enumerate(actors)
            }
            done = 0
            while done < len(places):
                report, slot = self.next_report(ray, at_work, units)
                if report.failure is not None and report.place is None:
                    raise open_failed(report.failure)
                if report.failure is not None:
                    raise unit_failed(units[report.place or 0], report.failure)
                if report.place is not None:
                    shown.update(job.weight(units[report.place]))
                    done += 1
                place = shares.take(slot)
                if place is not None:
                    at_work[actors[slot].do.remote(place, stored)] = (slot, place)
                if report.place is not None:
                    yield report.place, report.result()

    def next_report(
        self, ray: ModuleType, at_work: dict[Any, tuple[int, int | None]], units: Sequence[Unit]
    ) -> tuple[WorkerReport, int]:
        """Wait for the next report; also return the slot of its worker."""
        ready, _ = ray.wait(list(at_work), num_returns=1, timeout=PATIENCE)
        if not ready and all(place is None for _, place in at_work.values()):
            _log.warning(
                "No Ray worker has started for %d s: each needs %s CPUs and %s GPUs, and the "
                "cluster has %s.",
                PATIENCE, self.cpus_per_worker, self.gpus_per_worker, ray.cluster_resources(),
            )  # fmt: skip
        while not ready:
            ready, _ = ray.wait(list(at_work), num_returns=1, timeout=None)
        slot, place = at_work.pop(ready[0])
        try:
            return ray.get(ready[0]), slot
        except ray.exceptions.RayActorError as error:
            if place is None:
                raise open_failed(str(error)) from error
            how = f"with: {str(error).splitlines()[0]}"
            raise worker_died(units[place], self.retries + 1, how) from error
        except ray.exceptions.RayError as error:
            raise open_failed(str(error)) from error

    @contextmanager
    def session(self, ray: ModuleType, size: int) -> Iterator[None]:
        """Use the open Ray session, or open one that is closed on leaving."""
        if ray.is_initialized():
            yield
            return
        # Left to itself, ray.init() joins whatever cluster was last started here, dead ones too.
        address = self.address or "local"
        options: dict[str, Any] = {}
        if address == "local":
            options = {
                "object_store_memory": max(SMALL_STORE, 2 * size),
                "include_dashboard": False,
            }
            if self.workers is not None:
                options["num_cpus"] = max(1, -int(-self.workers * self.cpus_per_worker // 1))
        with ray_init_undone():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise IndexingError(
                    f"No Ray cluster answers at {address!r}: {error}. Start one with `ray "
                    "start --head` (and `ray start --address=HEAD:6379` on the other machines), "
                    "or leave out the address to use this machine only."
                ) from error
            try:
                yield
            finally:
                ray.shutdown()

    @contextmanager
    def actors(self, ray: ModuleType, most: int) -> Iterator[list[Any]]:
        """Start the workers; all have ended when the block is left."""
        kind = ray.remote(
            num_cpus=self.cpus_per_worker,
            num_gpus=self.gpus_per_worker,
            # Restarts have no limit of their own: the retries of each unit bound them.
            max_restarts=-1,
            max_task_retries=self.retries,
        )(RayWorker)
        room = self.room(ray.cluster_resources())
        count = min(most, self.workers or max(1, room))
        found: list[Any] = []
        try:
            for _ in range(count):
                found.append(kind.remote(max(1, int(self.cpus_per_worker)), sys.path))
            yield found
            ray.wait([one.close.remote() for one in found], num_returns=count, timeout=5)
        finally:
            for one in found:
                ray.kill(one, no_restart=True)

    def room(self, resources: dict[str, float]) -> int:
        """How many workers fit into a cluster with these resources."""
        cores = resources.get("CPU", 0) // self.cpus_per_worker
        if not self.gpus_per_worker:
            return int(cores)
        return int(min(cores, resources.get("GPU", 0) // self.gpus_per_worker))


@final
class RayWorker:
    """The worker in a Ray actor; after a restart it opens the job again."""

    def __init__(self, threads: int, paths: Sequence[str]) -> None:
        # The user's modules are found where the driver found them, on a disk that both see.
        sys.path.extend(path for path in paths if path not in sys.path)
        self._worker = Worker(threads)

    def open(self, stored: list[Any]) -> WorkerReport:
        """Open the job, unless it is open."""
        return self._worker.open(lambda: import_ray().get(stored[0]))

    def do(self, place: int, stored: list[Any]) -> WorkerReport:
        """Do a unit."""
        report = self.open(stored)
        return report if report.failure is not None else self._worker.do(place)

    def close(self) -> None:
        """Close the job."""
        self._worker.close()


@contextmanager
def ray_init_undone() -> Iterator[None]:
    """On leaving, undo what ray.init changes here: an environment variable, the SIGTERM handler."""
    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("RAY_USAGE_STATS_ENABLED", None)
        if is_main and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def import_ray() -> ModuleType:
    """The `ray` module.

    Raises:
        IndexingError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise IndexingError(
            f"tracin.integrations.ray.RayCluster needs Ray: {install_line('ray')}, on every "
            "machine of the cluster. tracin.engines.Processes works without it."
        ) from error
    return ray
