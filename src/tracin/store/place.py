"""Where an index lies: a folder on a disk, or any URL that fsspec knows."""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np

from tracin.checkpoints.atomic import flush
from tracin.errors import IndexingError

UNFINISHED = ".unfinished"


class Place(Protocol):
    """Files by their names, each written whole or not at all."""

    url: str

    def size(self, name: str) -> int | None:
        """A file's bytes; None where there is none."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """A file, or a part of it.

        Raises:
            IndexingError: It is not there, or cannot be read.
        """
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole; one that is there is replaced.

        Raises:
            IndexingError: The disk is full, or does not allow it.
        """
        ...

    def names(self) -> list[str]:
        """All files, unfinished ones too."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        ...


def place_of(folder: str | os.PathLike[str]) -> Place:
    """The place at a path or URL."""
    text = os.fspath(folder)
    if "://" in text and not text.startswith("file://"):
        return Remote(text)
    return Folder(Path(text.removeprefix("file://")).expanduser())


@final
class Folder:
    """A folder on a disk; what is read is mapped, so that the system keeps it in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.url = path, str(path)

    def size(self, name: str) -> int | None:
        place = self.path / name
        return place.stat().st_size if place.is_file() else None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        # Copied on writing, which nobody does: torch has no tensors that are read alone.
        with said(f"{self.path / name} cannot be read"):
            is_empty = not self.size(name)
            held = memoryview(b"") if is_empty else np.memmap(self.path / name, np.uint8, "c").data
        return held[start:stop]

    def write(self, name: str, content: bytes) -> None:
        place = self.path / name
        # Another builder, on another machine, may be writing the same file.
        mark = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        unfinished = place.with_name(f".{place.name}.{mark}{UNFINISHED}")
        with said(f"{place} cannot be written"):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with unfinished.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(unfinished, place)
                if os.name == "posix":
                    flush(place.parent)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise

    def names(self) -> list[str]:
        found = [path for path in self.path.rglob("*") if path.is_file()]
        return sorted(path.relative_to(self.path).as_posix() for path in found)

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
        with said(f"{url} cannot be opened", (OSError, ImportError, ValueError)):
            found: Any = fsspec.core.url_to_fs(self.url)
        self._files, self._root = found

    def size(self, name: str) -> int | None:
        with said(f"{self.url}/{name} cannot be looked up"):
            self._files.invalidate_cache()
            try:
                return int(self._files.size(self._at(name)))
            except FileNotFoundError:
                return None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        with said(f"{self.url}/{name} cannot be read"):
            held = self._files.cat_file(self._at(name), start or None, stop)
        return memoryview(bytearray(held))

    def write(self, name: str, content: bytes) -> None:
        with said(f"{self.url}/{name} cannot be written"):
            self._files.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(self._at(name), content)

    def names(self) -> list[str]:
        with said(f"{self.url} cannot be listed"):
            self._files.invalidate_cache()
            root = self._root.strip("/")
            found = self._files.find(self._root)
        return sorted(name.strip("/").removeprefix(root).strip("/") for name in found)

    def delete(self, name: str) -> None:
        with said(f"{self.url}/{name} cannot be deleted"):
            self._files.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


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
