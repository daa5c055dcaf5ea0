"""One writer per folder: a lock file names it, and a process that dies releases the lock.

The file holds the host, the process id and the time. On one host the system's record locks decide:
they end with their process, however it ends, and are not inherited by forked workers. Between
hosts that share a disk such locks cannot be relied on, so a file of another host is believed.
"""

import gc
import json
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from tracin.errors import TracInError

try:
    import fcntl
except ImportError:  # Windows has no record locks; the process id decides there
    fcntl = None

LOCK = ".writer.lock"

# Record locks do not tell two writers of one process apart. A forked child owns none of these.
_own: "weakref.WeakValueDictionary[tuple[int, str], FolderLock]" = weakref.WeakValueDictionary()


@final
class FolderLock:
    """The right to write to a folder, until `release` or the end of the process.

    `writer` is what messages call its owner, such as "Recorder"; `error` is raised if another
    writer has the folder.
    """

    def __init__(self, folder: Path, writer: str, error: type[TracInError]) -> None:
        self._path, self._writer, self._error = folder / LOCK, writer, error
        key = (os.getpid(), str(folder.resolve()))
        if key in _own:
            gc.collect()  # a writer that nothing refers to any more may hang in a cycle
        if key in _own:
            raise error(
                f"{folder} is being written to by another {writer} of this process. Close that one "
                "first (close(), or leave its with block), or give a new folder."
            )
        descriptor = self._take()
        _own[key] = self
        self._finalizer = weakref.finalize(self, _release, self._path, descriptor, os.getpid())

    def release(self) -> None:
        """Let others write to the folder."""
        self._finalizer()
        _own.pop((os.getpid(), str(self._path.parent.resolve())), None)

    def _take(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                has_lock = self._is_locked(descriptor)
                # The owner before may have removed the file between our opening and locking it.
                if not _is_at(descriptor, self._path):
                    os.close(descriptor)
                    continue
                self._refuse_alive(descriptor, has_lock)
                _write(descriptor)
            except BaseException:
                with suppress(OSError):
                    os.close(descriptor)
                raise
            return descriptor

    def _is_locked(self, descriptor: int) -> bool:
        """Whether the system granted the lock; False where it has no locks."""
        if fcntl is None:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise self._refusal(_read(descriptor)) from None
        except OSError:  # some network disks have no locks
            return False
        return True

    def _refuse_alive(self, descriptor: int, has_lock: bool) -> None:
        owner = _read(descriptor)
        if not owner:
            return
        is_here = owner.get("host") == socket.gethostname()
        if not is_here or (not has_lock and _is_alive(owner.get("pid"))):
            raise self._refusal(owner)

    def _refusal(self, owner: dict[str, Any]) -> TracInError:
        named = (
            f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('started')}"
            if owner
            else "another process"
        )
        return self._error(
            f"{self._path.parent} is being written to by another {self._writer} ({named}). Two of "
            "them on one folder would mix two trainings. Wait for that process, give a new folder, "
            f"or, if it is dead, delete {self._path}."
        )


def _release(path: Path, descriptor: int, pid: int) -> None:
    if os.getpid() != pid:  # a forked child: the lock is its parent's
        return
    with suppress(OSError):
        if _is_at(descriptor, path):
            path.unlink()
    with suppress(OSError):
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> dict[str, Any]:
    """Who wrote the file; nothing where that cannot be read."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        content = json.loads(os.read(descriptor, 4096))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(descriptor: int) -> None:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(owner).encode())


def _is_alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid < 1 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
