"""A worker process: opens the job once, does the units that it is told, and reports each."""

import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from types import FrameType

from tracin.engines.packed import unpacked
from tracin.engines.threads import use_threads


@dataclass(frozen=True)
class Report:
    """What a worker says: it is ready, or a unit is done; with a `failure`, the opposite.

    Attributes:
        place: Which unit; None when it speaks of opening the job.
        failure: The traceback.
    """

    place: int | None
    failure: str | None = None


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
                build(units[place])
                orders.send(Report(place))
    except Exception:
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
