"""Files that are there whole or not at all, whatever happens while they are written."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".unfinished"
# The safetensors library writes to names such as .tmpAb12Cd, and a killed process leaves them.
_LIBRARY = re.compile(r"\.tmp[A-Za-z0-9]{6}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on leaving, it takes the place of `path`.

    The temporary name is unique, so that two processes never write to one file. An exception
    (Ctrl-C too) removes the temporary file and leaves what was at `path`.
    """
    unfinished = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}{SUFFIX}")
    try:
        yield unfinished
        flush(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        # The new name is an entry of the folder, which reaches the disk on its own.
        flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left half-written; the folder must be the caller's alone."""
    for leftover in [*folder.glob(f".*{SUFFIX}"), *folder.glob(".tmp*")]:
        is_ours = leftover.name.endswith(SUFFIX) or _LIBRARY.fullmatch(leftover.name)
        if is_ours and leftover.is_file():
            leftover.unlink(missing_ok=True)
