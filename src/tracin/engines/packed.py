"""A job and its units as bytes, for another process."""

import pickle
from collections.abc import Callable, Sequence

from tracin.engines.job import Job, Unit
from tracin.errors import IndexingError


def packed(
    job: Job, units: Sequence[Unit], dumps: Callable[[object], bytes] = pickle.dumps
) -> bytes:
    """Bytes that `unpacked` turns back, in any process that can import what they name.

    Raises:
        IndexingError: Something in the job cannot leave this process.
    """
    try:
        return dumps((job, tuple(units)))
    except Exception as error:
        raise IndexingError(
            "Workers need a job that can be pickled, and this one holds something that cannot: "
            f"{type(error).__name__}: {error}. Define the model's class, the loss and the data's "
            "transforms at the top level of a module (no lambda, no class inside a function, no "
            "open file), or use tracin.engines.Serial()."
        ) from error


def unpacked(payload: bytes) -> tuple[Job, tuple[Unit, ...]]:
    """The job and its units."""
    return pickle.loads(payload)
