"""`Storage`: the operations on files that an index needs, and what its implementations share."""

import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, final

from tracin.errors import IndexingError

UNFINISHED = ".unfinished"


@final
@dataclass(frozen=True)
class File:
    """A file as its place lists it.

    Attributes:
        size: Its bytes.
        age: Seconds since it was written; None where that is unknown.
    """

    size: int
    age: float | None


class Storage(Protocol):
    """Files by their names, each written whole or not at all."""

    url: str

    def size(self, name: str) -> int | None:
        """A file's bytes; None where there is none."""
        ...

    def version(self, name: str) -> object | None:
        """Equal as long as a file is not replaced; None where that is unknown."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """A file, or a part of it.

        Raises:
            IndexingError: It is not there, or cannot be read.
        """
        ...

    def write(self, name: str, content: bytes | bytearray) -> None:
        """Write a file whole; one that is there is replaced.

        Raises:
            IndexingError: The disk is full, or does not allow it.
        """
        ...

    def create(self, name: str, content: bytes | bytearray) -> bool:
        """Write a file whole, unless there is one: whether it was written.

        Raises:
            IndexingError: As from `write`.
        """
        ...

    def files(self) -> Mapping[str, File]:
        """All files by their names, unfinished ones too."""
        ...

    def names(self) -> list[str]:
        """The names of all files, unfinished ones too."""
        ...

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from changing the manifest, where the place has locks; gone with a kill."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        ...


def process_mark() -> str:
    """Names this process in its unfinished files: others, elsewhere, may write the same file."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def is_abandoned(name: str, file: File, limit: float) -> bool:
    """Whether an unfinished file is abandoned.

    Its process was of this machine and is gone; or it is older than `limit` seconds, while writing
    one takes moments.
    """
    if file.age is not None and file.age > limit:
        return True
    before, _, _ = name.removesuffix(UNFINISHED).rpartition("-")
    before, _, process = before.rpartition("-")
    if not before.endswith(f".{socket.gethostname()}") or not process.isdecimal():
        return False
    return not _is_running(int(process))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def as_indexing_error(what: str, kinds: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Turn the system's errors into ours."""
    try:
        yield
    except kinds as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise IndexingError(
            f"{what}: {why}. Finished files are kept; run the same again once this is fixed."
        ) from error
