"""Files written whole or not at all, read with every check, and known again by their checksums.

CRC-32 finds every damage of up to 32 bits in a row and all but one in 4e9 of the others. It is in
Python's standard library and runs at about 3 GB/s, faster than most disks; cryptographic digests
run at 0.4 to 0.8 GB/s. It protects against accidents, not against forgery.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tracin.errors import CheckpointError, TracInError
from tracin.plain_text import a_kind

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".unfinished"
# The safetensors library writes to names such as .tmpAb12Cd, and a killed process leaves them.
_LIBRARY = re.compile(r"\.tmp[A-Za-z0-9]{6}")
CHECKSUM = "checksum"
LARGEST = 1 << 30  # bytes of a JSON file that are read into memory
_BLOCK = 1 << 22
# (name, bytes, time of the last write in nanoseconds) of each file
Stamp: TypeAlias = tuple[tuple[str, int, int], ...]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on leaving, it replaces `path`.

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


def made_folder(folder: str | Path, error: type[TracInError]) -> Path:
    """Make a folder if it is not there; the path is absolute, so that it survives `os.chdir`."""
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
    """Explain an error of the disk in the block."""
    try:
        yield
    except OSError as cause:
        raise error(unwritable(folder, cause)) from cause


def unwritable(folder: Path, cause: OSError) -> str:
    """Why nothing can be written to a folder."""
    is_full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
    way = (
        "Free some space, then resume from the last save"
        if is_full
        else "Check the disk and the permissions, then resume from the last save"
    )
    return (
        f"{folder} cannot be written to ({cause.strerror or cause}). {way}, or give another disk."
    )


def text_of(crc: int) -> str:
    """A CRC-32 as it stands in files.

    >>> text_of(zlib.crc32(b"weights"))
    '1ad27358'
    """
    return f"{crc:08x}"


def file_blocks(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """A part of a file, a few MB at a time; it ends early where the file does."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        left = stop - start
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            left -= len(block)
            yield block


def crc_of(path: Path, size: int, crc: int = 0) -> int:
    """The CRC-32 of the first `size` bytes of a file."""
    for block in file_blocks(path, 0, size):
        crc = zlib.crc32(block, crc)
    return crc


def sealed(content: Mapping[str, Any]) -> str:
    """JSON that carries its checksum, for `read_sealed`.

    >>> sealed({"step": 3})
    '{"step": 3, "checksum": "08b1f3bf"}'
    """
    return json.dumps({**content, CHECKSUM: _checksum(content)})


def read_sealed(
    path: Path, version: int, error: type[TracInError] = CheckpointError
) -> dict[str, Any]:
    """Read what `sealed` made, without its checksum and its "format"."""
    content = read_json(path, error)
    if content.get("format") != version:
        raise error(
            f"{path} has format {content.get('format')!r}, and this release of tracin reads "
            f"{version}. Read it with the release that wrote it."
        )
    was = content.pop(CHECKSUM, None)
    if was != _checksum(content):
        raise error(
            f"{path} does not match its own checksum ({was!r}): it was damaged or changed by hand. "
            "Restore it from a backup."
        )
    del content["format"]
    return content


def checked_fields(content: Any, **kinds: type | tuple[type, ...]) -> list[Any]:
    """The values of a JSON object that must have exactly these keys, each of its kind.

    Raises:
        ValueError: It is no object, a key is missing or unknown, or a value is of another kind.

    Example:
        >>> checked_fields({"step": 3, "loss": 0.5}, step=int, loss=float)
        [3, 0.5]
        >>> checked_fields({"step": True}, step=int)
        Traceback (most recent call last):
        ValueError: 'step' is a bool, not an int
    """
    if not isinstance(content, dict) or content.keys() != kinds.keys():
        held = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{sorted(kinds)} were expected, not {held}")
    for name, kind in kinds.items():
        is_bool = isinstance(content[name], bool) and kind is not bool
        if is_bool or not isinstance(content[name], kind):
            wanted = kind.__name__ if isinstance(kind, type) else "one of several kinds"
            article = "an" if wanted[0] in "aeiou" else "a"
            raise ValueError(f"'{name}' is {a_kind(content[name])}, not {article} {wanted}")
    return [content[name] for name in kinds]


def read_json(path: Path, error: type[TracInError] = CheckpointError) -> dict[str, Any]:
    """Read a JSON file that holds an object, of any origin.

    Raises:
        TracInError: It is missing, not JSON, not an object, larger than 1 GiB, or nested too deep.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ValueError(f"it has {size} bytes, more than the {LARGEST} that are read")
        content = json.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError, MemoryError) as cause:
        raise error(
            f"{path} cannot be read ({cause}): it is missing, truncated or damaged. Restore it, or "
            "leave it out."
        ) from cause
    if not isinstance(content, dict):
        raise error(f"{path} must hold a JSON object, but holds {a_kind(content)}.")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return text_of(zlib.crc32(json.dumps(content).encode()))


def fingerprint(pieces: Iterable[str | bytes | memoryview], size: int = 16) -> str:
    """A BLAKE2b digest of `size` bytes of the joined pieces, in hexadecimal; text counts as UTF-8.

    Example:
        >>> fingerprint(["fc.weight", b"12"], size=8)
        '57c51c231d5d973c'
    """
    digest = hashlib.blake2b(digest_size=size)
    for piece in pieces:
        digest.update(piece.encode() if isinstance(piece, str) else piece)
    return digest.hexdigest()


def ids_fingerprint(ids: np.ndarray) -> str:
    """Equal for equal ids in the same order."""
    return fingerprint(["\n".join(map(str, ids.tolist()))])


def bytes_of(tensor: "Tensor") -> memoryview:
    """A tensor's numbers as they lie in memory; not copied where that is the CPU's."""
    # Imported late: `tracin view` writes files, and starts without waiting for torch.
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def stamp_of(files: Iterable[Path]) -> Stamp:
    """What changes when one of these files is written anew, cut or replaced."""
    try:
        return tuple((file.name, (it := file.stat()).st_size, it.st_mtime_ns) for file in files)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename} cannot be read: {error.strerror or error}."
        ) from error
