"""What an engine says when a unit cannot be done."""

from tracin.engines.gather import Part
from tracin.engines.job import Unit
from tracin.errors import IndexingError

KEPT = "Finished units stay; the same call goes on from them."


def raised(unit: Unit, said: str) -> IndexingError:
    """A unit raised an error; `said` is what there is of it."""
    what = (
        f"{unit} could not be done."
        if isinstance(unit, Part)
        else f"{unit} could not be built. {KEPT}"
    )
    return IndexingError(f"{what} It said:\n{said.rstrip()}")


def not_opened(said: str) -> IndexingError:
    """A worker could not load what the units need, or let go of it."""
    return IndexingError(
        "A worker could not open the job, or close it. What it loads must be there for every "
        "worker: classes and functions in a module that can be imported, files on a disk that all "
        "see. In a notebook, move the model's class and the data into a .py file, or use "
        f"tracin.engines.Serial(). It said:\n{said.rstrip()}"
    )


def died(unit: Unit, times: int, how: str) -> IndexingError:
    """The workers that were given a unit died, each of them."""
    kept = "" if isinstance(unit, Part) else f"{KEPT} "
    return IndexingError(
        f"{unit} ended its worker {times} times; the last {how}. {kept}Exit code -9 mostly means "
        "out of memory: take fewer workers, a smaller batch_size, or fewer rows a shard."
    )


def not_started(how: str) -> IndexingError:
    """Worker processes end before they reach the job."""
    return IndexingError(
        f"A worker {how} before it could open the job; what it said is on stderr. A worker "
        "imports the script that started it: put what the script does under "
        "`if __name__ == '__main__':`, and run it from a file. tracin.engines.Serial() needs "
        "neither."
    )
