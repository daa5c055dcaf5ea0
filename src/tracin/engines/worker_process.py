"""A process with one worker: started here, ended here, and what runs inside it."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, final

from tracin.engines.hardware import use_threads
from tracin.engines.worker import Worker, WorkerReport

GRACE = 5.0  # seconds that a worker has to remove its unfinished file


@final
class WorkerProcess:
    """A worker process of its own pool, so that its death breaks no other worker.

    One pool for all would give units to any free worker, and each worker would load every
    checkpoint; and of a killed worker it could not say which unit it had.

    Attributes:
        slot: Whose share of the units it does.
        place: The unit it is doing; None for opening or closing the job.
        is_open: Whether it has opened the job.
        is_closing: Whether it was asked to close the job.
    """

    def __init__(self, slot: int, threads: int, gpu: str | None) -> None:
        self.slot = slot
        self.place: int | None = None
        self.is_open = self.is_closing = False
        self._pool = ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(threads, gpu),
        )
        self._process: BaseProcess | None = None

    def open(self, payload: bytes) -> "Future[WorkerReport]":
        """Start the process, and have it open the job."""
        # Its helper process unblocks SIGINT as it starts, so it must run before.
        resource_tracker.ensure_running()
        with sigint_blocked():
            report = self._pool.submit(_open, payload)
            # Private until Python 3.14 can end the workers of a pool (`terminate_workers`).
            (self._process,) = self._pool._processes.values()
            # As long as this end is open, half a message of a killed worker is waited for forever.
            self._pool._result_queue._writer.close()  # pyright: ignore
        return report

    def do(self, place: int) -> "Future[WorkerReport]":
        """Have it do a unit."""
        self.place = place
        return self._submit(_do, place)

    def close(self) -> "Future[WorkerReport]":
        """Have it close the job; it gets no further unit."""
        self.place, self.is_closing = None, True
        return self._submit(_close)

    def join(self) -> int | None:
        """Wait until the process has ended, once it has nothing to do; returns its exit code."""
        self._pool.shutdown(cancel_futures=True)
        return None if self._process is None else self._process.exitcode

    def terminate(self) -> None:
        """Ask the process to end now."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Give a terminated process a few seconds to end by itself, then kill it."""
        if self._process is not None and not connection.wait([self._process.sentinel], GRACE):
            self._process.kill()
        self.join()

    def _submit(self, function: Callable[..., WorkerReport], *args: Any) -> "Future[WorkerReport]":
        try:
            return self._pool.submit(function, *args)
        except BrokenProcessPool as error:  # it died between two units
            report: Future[WorkerReport] = Future()
            report.set_exception(error)
            return report


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Keep Ctrl-C waiting until the end of the block; processes started in it never see it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# From here on: what runs inside the process.

_workers: list[Worker] = []  # one, from `_begin` on
_busy: list[Worker] = []  # the same one, while it runs the job's own code


def _begin(threads: int, gpu: str | None) -> None:
    # Only the parent answers to Ctrl-C; it ends its workers by SIGTERM, as a cluster may.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _workers.append(Worker(threads))
    signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    use_threads(threads)


def _open(payload: bytes) -> WorkerReport:
    with _exits_end_the_process():
        return _workers[0].open(lambda: payload)


def _do(place: int) -> WorkerReport:
    with _exits_end_the_process():
        return _workers[0].do(place)


def _close() -> WorkerReport:
    with _exits_end_the_process():
        return _workers[0].close()


@contextmanager
def _exits_end_the_process() -> Iterator[None]:
    """The pool would hand a SystemExit to the parent, and keep the process."""
    _busy.append(_workers[0])
    try:
        yield
    except SystemExit as error:
        _workers[0].close()
        os._exit(error.code if isinstance(error.code, int) else 1)
    finally:
        _busy.clear()


def _exit(number: int, frame: FrameType | None) -> None:
    """Unwind the job's code, so that an unfinished file is removed, and end."""
    if _busy:
        sys.exit(128 + number)
    # The pool's own code may swallow a SystemExit.
    _workers[0].close()
    os._exit(128 + number)


def _end_with_parent() -> None:
    """End when the parent has ended, however it did: the unit is no longer needed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
