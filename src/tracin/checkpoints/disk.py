"""What the system says about a folder or a disk, in words that name the folder and the way out."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tracin.errors import TracInError


def made_folder(folder: str | Path, error: type[TracInError]) -> Path:
    """Make a folder if it is not there; the path is absolute, so that it survives `os.chdir`.

    Raises:
        TracInError: It cannot be made.
    """
    try:
        made = Path(folder).expanduser().absolute()
        made.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError, TypeError) as cause:
        raise error(
            f"{folder!r} cannot be made a folder ({cause}). Give the path of a folder that may be "
            "written to."
        ) from cause
    return made


@contextmanager
def writing(folder: Path, error: type[TracInError]) -> Iterator[None]:
    """Word what goes wrong on the disk within.

    Raises:
        TracInError: In place of any OSError.
    """
    try:
        yield
    except OSError as cause:
        raise error(unwritable(folder, cause)) from cause


def unwritable(folder: Path, cause: OSError) -> str:
    """Why nothing can be written to a folder."""
    is_full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
    way = (
        "Free some space, then go on from the last save"
        if is_full
        else "Check the disk and the permissions, then go on from the last save"
    )
    return (
        f"{folder} cannot be written to ({cause.strerror or cause}). {way}, or give another disk."
    )
