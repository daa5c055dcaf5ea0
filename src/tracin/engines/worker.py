"""A worker process: opens the job once, does the units that it is told, and reports each."""

import os
import pickle
import signal
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from tracin.engines.packed import unpacked
from tracin.engines.threads import use_threads


@dataclass(frozen=True)
class Report:
    """What a worker says: it is ready, or a unit is done; with a `failure`, the opposite.

    Attributes:
        place: Which unit; None when it speaks of opening the job.
        failure: The traceback.
        result: What the unit returned, pickled; None for None.
    """

    place: int | None
    failure: str | None = None
    result: bytes | None = None


def result_of(returned: object) -> bytes | None:
    """What a unit returned, as bytes of its own: torch would share memory that ends with a worker.

    None for None.
    """
    return None if returned is None else pickle.dumps(returned)


def returned(report: Report) -> Any:
    """What the unit of a report returned."""
    return None if report.result is None else pickle.loads(report.result)


def serve(payload: bytes, orders: Connection, threads: int, gpu: str | None) -> None:
    """Do the units whose places come in, until None comes."""
    # The parent alone answers to Ctrl-C; it ends its workers by SIGTERM, as a cluster may.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=die_with_the_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    use_threads(threads)
    place: int | None = None
    try:
        job, units = unpacked(payload)
        with job.open() as build:
            use_threads(threads)
            orders.send(Report(None))
            while (place := orders.recv()) is not None:
                result = result_of(build(units[place]))
                orders.send(Report(place, None, result))
    except Exception:
        with suppress(OSError):  # the parent is gone, and nobody is left to be told
            orders.send(Report(place, traceback.format_exc()))


def leave(number: int, frame: FrameType | None) -> None:
    """Unwind, so that an unfinished file is taken away."""
    sys.exit(128 + number)


def die_with_the_parent() -> None:
    """End when the parent has, however it did: nobody waits for the unit."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
