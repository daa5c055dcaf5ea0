"""Whether files are still those that were opened: a training that goes on may write them anew."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from tracin.errors import CheckpointError

# (name, bytes, time of the last write in nanoseconds) of each file
Stamp: TypeAlias = tuple[tuple[str, int, int], ...]


def stamp_of(files: Iterable[Path]) -> Stamp:
    """What changes when one of these files is written anew, cut or replaced.

    Raises:
        CheckpointError: A file is not there.
    """
    try:
        return tuple((file.name, (it := file.stat()).st_size, it.st_mtime_ns) for file in files)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename} cannot be read: {error.strerror or error}."
        ) from error
