"""Checksums that lie in the very bytes they are of, which hold zeros while they are summed."""

import json

from tracin.errors import IndexingError
from tracin.extras import install_line

BLANK = b"0" * 32


def checksum(*pieces: bytes | bytearray | memoryview) -> str:
    """xxh3 with 128 bits of the pieces together, in hexadecimal.

    Raises:
        IndexingError: xxhash is not installed.
    """
    try:
        import xxhash
    except ImportError as error:
        raise IndexingError(
            "The files of an index are checked with xxhash, which is not installed: "
            f"{install_line('index')}."
        ) from error
    total = xxhash.xxh3_128()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def with_checksum(content: bytes, at: int) -> bytes:
    """The content, with a checksum of all of it where `BLANK` begins at `at`."""
    if content[at : at + len(BLANK)] != BLANK:
        raise RuntimeError("there is no room for a checksum; a bug in tracin")
    return _with(content, at, checksum(content).encode())


def refuse_changed(content: bytes, at: int) -> None:
    """Compare content with the checksum that begins at `at`.

    Raises:
        ValueError: They differ.
    """
    compare(content[at : at + len(BLANK)].decode("latin-1"), _with(content, at, BLANK))


def compare(expected: str, *pieces: bytes | bytearray | memoryview) -> None:
    """Compare pieces with their checksum.

    Raises:
        ValueError: They differ.
    """
    if checksum(*pieces) != expected:
        raise ValueError("changed since it was written: its checksum differs")


def headed(*body: bytes | bytearray | memoryview) -> bytes:
    """Bytes of any kind below a line with their checksum."""
    return b"".join((_line(*body), *body))


def body_of(content: bytes | memoryview) -> memoryview:
    """What is below that line.

    Raises:
        ValueError: It, or the line, was changed.
    """
    size = len(_line(b""))
    body = memoryview(content)[size:]
    if bytes(content[:size]) != _line(body):
        raise ValueError("truncated or changed since it was written: its checksum differs")
    return body


def _line(*body: bytes | bytearray | memoryview) -> bytes:
    return json.dumps({"xxh3_128": checksum(*body)}).encode() + b"\n"


def _with(content: bytes, at: int, piece: bytes) -> bytes:
    return b"".join((content[:at], piece, content[at + len(piece) :]))
