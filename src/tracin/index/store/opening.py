"""Opens the storage at a path or URL."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from tracin.errors import IndexingError
from tracin.index.store.folder import Folder
from tracin.index.store.remote import Remote
from tracin.index.store.storage import Storage

_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+")  # fsspec chains them, as in simplecache::s3
_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


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
        f"{text} is no folder for an index: {why}. Use the path of a folder, or a URL."
    )
