"""A local folder as the storage of an index."""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final

import numpy as np

from tracin.files import flush
from tracin.index.store.mounts import is_on_network
from tracin.index.store.storage import UNFINISHED, File, as_indexing_error, process_mark

_PIECE = 1 << 28  # bytes that one system call reads; Linux gives at most 2 GiB


@final
class Folder:
    """A folder on a disk; what is read is mapped, so that the system keeps it in memory.

    On a network's file system it is read into memory instead: a mapped file whose server is gone,
    or that another machine replaced, would end the process with a signal.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.url = path, str(path)
        self._on_network: bool | None = None

    def size(self, name: str) -> int | None:
        found = self._stat(name)
        return None if found is None else found.st_size

    def version(self, name: str) -> object | None:
        if self._is_on_network():  # what is read is a copy, and each is another
            return None
        found = self._stat(name)
        return found and (found.st_ino, found.st_size, found.st_mtime_ns)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        with as_indexing_error(f"{self.path / name} cannot be read"):
            size = self.size(name)
            if size == 0:
                return memoryview(b"")
            if size is not None and self._is_on_network():
                start, stop, _ = slice(start, stop).indices(size)
                return read_into_memory(self.path / name, start, stop)
            # Copied on write, though nothing writes: torch has no read-only tensors.
            return np.memmap(self.path / name, np.uint8, "c").data[start:stop]

    def write(self, name: str, content: bytes | bytearray) -> None:
        with (
            as_indexing_error(f"{self.path / name} cannot be written"),
            self._written(name, content) as whole,
        ):
            os.replace(whole, self.path / name)

    def create(self, name: str, content: bytes | bytearray) -> bool:
        with (
            as_indexing_error(f"{self.path / name} cannot be written"),
            self._written(name, content) as whole,
        ):
            try:
                os.link(whole, self.path / name)
            except FileExistsError:
                return False
            except OSError:
                # Some file systems have no links; there, a builder at the same moment may win.
                if self.size(name) is not None:
                    return False
                os.replace(whole, self.path / name)
        return True

    def files(self) -> dict[str, File]:
        now, found = time.time(), {}
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = Path(folder, name)
                try:
                    known = path.stat()
                except FileNotFoundError:  # finished, and renamed, since it was listed
                    continue
                at = path.relative_to(self.path).as_posix()
                found[at] = File(known.st_size, now - known.st_mtime)
        return found

    def names(self) -> list[str]:
        return sorted(self.files())

    @contextmanager
    def locked(self) -> Iterator[None]:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        with as_indexing_error(f"{self.path} cannot be written"):
            self.path.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path, os.O_RDONLY)
        try:
            with suppress(OSError):  # NFS does not lock folders
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _stat(self, name: str) -> os.stat_result | None:
        with as_indexing_error(f"{self.path / name} cannot be looked up"):
            try:
                found = (self.path / name).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return found if stat.S_ISREG(found.st_mode) else None

    def _is_on_network(self) -> bool:
        if self._on_network is None:
            self._on_network = is_on_network(self.path)
        return self._on_network

    @contextmanager
    def _written(self, name: str, content: bytes | bytearray) -> Iterator[Path]:
        """The content in an unfinished file, to be given its name; gone on leaving."""
        place = self.path / name
        unfinished = place.with_name(f".{place.name}.{process_mark()}{UNFINISHED}")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield unfinished
            if os.name == "posix":
                flush(place.parent)
        finally:
            unfinished.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        with as_indexing_error(f"{self.path / name} cannot be deleted"):
            (self.path / name).unlink(missing_ok=True)


def read_into_memory(path: Path, start: int, stop: int) -> memoryview:
    """A part of a file, in memory of its own."""
    held = memoryview(bytearray(max(0, stop - start)))
    with path.open("rb", buffering=0) as file:
        at = 0
        while at < len(held):
            count = os.preadv(file.fileno(), [held[at : at + _PIECE]], start + at)
            if count == 0:  # truncated meanwhile: the caller checks the length
                break
            at += count
    return held[:at]
