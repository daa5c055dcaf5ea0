"""The errors of an engine that cannot finish a job."""

from tracin.engines.gather import Part
from tracin.engines.job import Unit
from tracin.errors import IndexingError

RESUMES = "Finished units stay; the same call resumes."


def unit_failed(unit: Unit, details: str) -> IndexingError:
    """A unit raised an error; `details` are its message or traceback."""
    what = f"{unit} failed." if isinstance(unit, Part) else f"{unit} could not be built. {RESUMES}"
    return IndexingError(f"{what} The error was:\n{details.rstrip()}")


def open_failed(details: str) -> IndexingError:
    """A worker could not open the job, or close it."""
    return IndexingError(
        "A worker could not open the job, or close it. The modules that it imports and the files "
        "that it reads must be there for every worker; tracin.engines.Serial() needs no workers. "
        f"The error was:\n{details.rstrip()}"
    )


def worker_died(unit: Unit, times: int, how: str) -> IndexingError:
    """Every worker that was given a unit died."""
    resumes = "" if isinstance(unit, Part) else f"{RESUMES} "
    return IndexingError(
        f"{unit} ended its worker {times} times; the last {how}. {resumes}Exit code -9 mostly "
        "means out of memory: use fewer workers, a smaller batch_size, or a smaller shard_size."
    )


def start_failed(how: str) -> IndexingError:
    """Worker processes end before they reach the job."""
    return IndexingError(
        f"A worker {how} before it could open the job; its own message is on stderr. A worker "
        "imports the script that started it: put what the script does under "
        "`if __name__ == '__main__':`, and run it from a file. tracin.engines.Serial() needs "
        "neither."
    )
