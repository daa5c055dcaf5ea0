"""Any URL that fsspec knows as the storage of an index."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, final

import numpy as np

from tracin.errors import IndexingError
from tracin.extras import install_line
from tracin.index.store.storage import File, as_indexing_error

# fsspec's names of object stores, which have no folders.
OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "r2"})
# What fsspec's file systems raise, such as botocore's own errors.
ANY = (Exception,)


@final
class Remote:
    """Files behind a URL; one request writes a file, which object stores do whole or not at all."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise IndexingError(
                f"{url} is read through fsspec, which is not installed: {install_line('index')}."
            ) from error
        self.url = url.rstrip("/")
        with as_indexing_error(f"{url} cannot be opened", ANY):
            found: Any = fsspec.core.url_to_fs(self.url)
        self._files, self._root = found

    def size(self, name: str) -> int | None:
        with as_indexing_error(f"{self.url}/{name} cannot be looked up", ANY):
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
        with as_indexing_error(f"{self.url}/{name} cannot be read", ANY):
            held = self._files.cat_file(self._at(name), start=start or None, end=stop)
        return memoryview(bytearray(held))

    def write(self, name: str, content: bytes | bytearray) -> None:
        with as_indexing_error(f"{self.url}/{name} cannot be written", ANY):
            self._prepare(name)
            self._files.pipe_file(self._at(name), bytes(content))

    def create(self, name: str, content: bytes | bytearray) -> bool:
        if self.size(name) is not None:
            return False
        with as_indexing_error(f"{self.url}/{name} cannot be written", ANY):
            self._prepare(name)
            try:
                # S3 and the like refuse it if another came first; elsewhere the last one wins.
                self._files.pipe_file(self._at(name), bytes(content), mode="create")
            except FileExistsError:
                return False
        return True

    def files(self) -> dict[str, File]:
        with as_indexing_error(f"{self.url} cannot be listed", ANY):
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
        with as_indexing_error(f"{self.url}/{name} cannot be deleted", ANY):
            self._files.rm_file(self._at(name))

    def _prepare(self, name: str) -> None:
        """Make the folder of a file; where names are all there is, that would make a bucket."""
        if not OBJECTS & set(np.atleast_1d(self._files.protocol).tolist()):
            self._files.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


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


def _age(entry: Mapping[str, Any]) -> float | None:
    """From what a file system calls the time of writing, if it does."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        found = entry.get(name)
        if isinstance(found, datetime):
            return time.time() - found.timestamp()
        if isinstance(found, int | float):
            return time.time() - found
    return None
