"""Where an index lies: a folder on a disk, or any URL that fsspec knows."""

import os
import re
import socket
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np

from tracin.errors import IndexingError
from tracin.files import flush
from tracin.index.store.mounts import is_on_network

UNFINISHED = ".unfinished"
# fsspec's names of object stores, which have no folders.
OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "r2"})
# What fsspec's file systems raise, such as botocore's own errors.
ANY = (Exception,)
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+")  # fsspec chains them, as in simplecache::s3
_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_PIECE = 1 << 28  # bytes that one system call reads; Linux gives at most 2 GiB


@final
@dataclass(frozen=True)
class File:
    """A file as its place lists it.

    Attributes:
        size: Its bytes.
        age: Seconds since it was written; None where the place does not tell.
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
        """Equal as long as a file is not replaced; None where the place does not tell."""
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


def open_storage(folder: str | os.PathLike[str]) -> Storage:
    """The place at a path or URL; a relative path is one of the working directory of this moment.

    Raises:
        IndexingError: It can be the name of no folder, or is half a URL.
    """
    text = absolute(folder)
    return Remote(text) if "://" in text else Folder(Path(text))


def absolute(folder: str | os.PathLike[str]) -> str:
    """A folder or URL as text that means the same in another process, and later.

    Raises:
        IndexingError: It can be the name of no folder, or is half a URL.

    Example:
        >>> absolute("s3://bucket/index"), absolute("/data/index")
        ('s3://bucket/index', '/data/index')
    """
    text = _named(folder)
    protocol, is_url, rest = text.partition("://")
    if is_url and protocol != "file":
        if not _PROTOCOL.fullmatch(protocol) or not rest.strip("/"):
            raise _odd(text, "a URL needs a protocol and a name, such as s3://bucket/index")
        return text
    # What pathlib makes of a URL, or a slip.
    if _ONE_SLASH.match(text):
        raise _odd(text, "a URL has two slashes after its protocol; give it as a text, not a Path")
    try:
        found = Path(text.removeprefix("file://")).expanduser().absolute()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found.stat()
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        if isinstance(error, FileNotFoundError):
            why = "it is relative, and the working directory was deleted"
        raise _odd(text, why) from error
    return str(found)


def _named(folder: Any) -> str:
    """The text of a path, which a system could take."""
    try:
        text = os.fsdecode(folder)
        os.fsencode(text)
    except TypeError as error:
        raise _odd(folder, f"a path or URL is a text, and this is a {type(folder).__name__}") from (
            error
        )
    except UnicodeEncodeError as error:
        raise _odd(folder, "it holds a character that no name of a file can") from error
    if not text or "\0" in text:
        raise _odd(text, "it is empty" if not text else "it holds a NUL character")
    return text


def _odd(folder: Any, why: str) -> IndexingError:
    text = ascii(folder)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return IndexingError(
        f"{text} names no folder for an index: {why}. Give the path of a folder, or a URL."
    )


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
        with said(f"{self.path / name} cannot be read"):
            size = self.size(name)
            if size == 0:
                return memoryview(b"")
            if size is not None and self._is_on_network():
                start, stop, _ = slice(start, stop).indices(size)
                return read_into_memory(self.path / name, start, stop)
            # Copied on writing, which nobody does: torch has no tensors that are read alone.
            return np.memmap(self.path / name, np.uint8, "c").data[start:stop]

    def write(self, name: str, content: bytes | bytearray) -> None:
        with said(f"{self.path / name} cannot be written"), self._written(name, content) as whole:
            os.replace(whole, self.path / name)

    def create(self, name: str, content: bytes | bytearray) -> bool:
        with said(f"{self.path / name} cannot be written"), self._written(name, content) as whole:
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
        with said(f"{self.path} cannot be written"):
            self.path.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path, os.O_RDONLY)
        try:
            with suppress(OSError):  # NFS does not lock folders
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _stat(self, name: str) -> os.stat_result | None:
        with said(f"{self.path / name} cannot be looked up"):
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
        unfinished = place.with_name(f".{place.name}.{mark()}{UNFINISHED}")
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
        with said(f"{self.path / name} cannot be deleted"):
            (self.path / name).unlink(missing_ok=True)


@final
class Remote:
    """Files behind a URL; one request writes a file, which object stores do whole or not at all."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise IndexingError(
                f"{url} is read through fsspec, which is not installed: pip install "
                "'tracin[index]'."
            ) from error
        self.url = url.rstrip("/")
        with said(f"{url} cannot be opened", ANY):
            found: Any = fsspec.core.url_to_fs(self.url)
        self._files, self._root = found

    def size(self, name: str) -> int | None:
        with said(f"{self.url}/{name} cannot be looked up", ANY):
            self._files.invalidate_cache()
            try:
                return int(self._files.size(self._at(name)))
            except FileNotFoundError as error:
                if is_missing(error):
                    return None
                raise (error.__cause__ or error) from None

    def version(self, name: str) -> object | None:
        return None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        with said(f"{self.url}/{name} cannot be read", ANY):
            held = self._files.cat_file(self._at(name), start=start or None, end=stop)
        return memoryview(bytearray(held))

    def write(self, name: str, content: bytes | bytearray) -> None:
        with said(f"{self.url}/{name} cannot be written", ANY):
            self._prepare(name)
            self._files.pipe_file(self._at(name), bytes(content))

    def create(self, name: str, content: bytes | bytearray) -> bool:
        if self.size(name) is not None:
            return False
        with said(f"{self.url}/{name} cannot be written", ANY):
            self._prepare(name)
            try:
                # S3 and the like refuse it if another came first; elsewhere the last one wins.
                self._files.pipe_file(self._at(name), bytes(content), mode="create")
            except FileExistsError:
                return False
        return True

    def files(self) -> dict[str, File]:
        with said(f"{self.url} cannot be listed", ANY):
            self._files.invalidate_cache()
            root = self._root.strip("/")
            found = self._files.find(self._root, detail=True)
        return {
            name.strip("/").removeprefix(root).strip("/"): File(int(each["size"]), _age(each))
            for name, each in found.items()
        }

    def names(self) -> list[str]:
        return sorted(self.files())

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def delete(self, name: str) -> None:
        with said(f"{self.url}/{name} cannot be deleted", ANY):
            self._files.rm_file(self._at(name))

    def _prepare(self, name: str) -> None:
        """Make the folder of a file; where names are all there is, that would make a bucket."""
        if not OBJECTS & set(np.atleast_1d(self._files.protocol).tolist()):
            self._files.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def mark() -> str:
    """Names this process in its unfinished files: others, elsewhere, may write the same file."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def is_abandoned(name: str, file: File, limit: float) -> bool:
    """Whether nobody will finish an unfinished file.

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


def read_into_memory(path: Path, start: int, stop: int) -> memoryview:
    """A part of a file, in memory of its own."""
    held = memoryview(bytearray(max(0, stop - start)))
    with path.open("rb", buffering=0) as file:
        at = 0
        while at < len(held):
            count = os.preadv(file.fileno(), [held[at : at + _PIECE]], start + at)
            if count == 0:  # cut short by another: the length tells
                break
            at += count
    return held[:at]


def is_missing(error: BaseException | None) -> bool:
    """Whether a file is not there, rather than out of reach.

    Of HTTP, fsspec says that a file is missing also where no server answered, or one refused.
    """
    if isinstance(error, FileNotFoundError):
        return error.__cause__ is None or is_missing(error.__cause__)
    return _status(error) in (404, 410)


def _status(error: BaseException | None) -> Any:
    found = getattr(error, "status", None)
    response = getattr(error, "response", None)  # botocore's
    if found is None and isinstance(response, Mapping):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return found


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _age(entry: Mapping[str, Any]) -> float | None:
    """From what a file system calls the time of writing, if it does."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        found = entry.get(name)
        if isinstance(found, datetime):
            return time.time() - found.timestamp()
        if isinstance(found, int | float):
            return time.time() - found
    return None


@contextmanager
def said(what: str, kinds: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Turn the system's errors into ours."""
    try:
        yield
    except kinds as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise IndexingError(
            f"{what}: {why}. What was finished is kept; run the same again when this is mended."
        ) from error
