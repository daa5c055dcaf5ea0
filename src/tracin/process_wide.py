"""Settings of the whole process, changed within a block and restored."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, final

from tracin.restoring import Restoring

Undo = Callable[[], object]


@final
class Setting:
    """A change to the process that the first to enter makes, and the last to leave takes back.

    Passes over two models may run in two threads at once. If each of them saved what it found and
    put that back, the one that left last would put back what the other had set.

    Args:
        change: Makes the change. It calls `keep(undo)` before each of its steps, so that the steps
            already made are taken back, the last one first, wherever it is interrupted.

    Example:
        >>> level = [1]
        >>> def raise_level(keep):
        ...     before = level[0]
        ...     keep(lambda: level.__setitem__(0, before))
        ...     level[0] = 5
        >>> raised = Setting(raise_level)
        >>> with raised(), raised():
        ...     print(level)
        [5]
        >>> level
        [1]
    """

    def __init__(self, change: Callable[[Callable[[Undo], None]], None]) -> None:
        self._change = change
        self._lock = threading.RLock()  # a signal handler may come here from within
        self._holders: set[object] = set()
        self._undo: list[Undo] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the change; several may at once, in one thread or in many."""
        holder: Any = object()
        restoring = Restoring(partial(self._leave, holder))
        with restoring, restoring:
            self._enter(holder)
            yield

    def _enter(self, holder: object) -> None:
        with self._lock:
            is_first = not self._holders
            self._holders.add(holder)
            if is_first:
                self._change(self._undo.append)

    def _leave(self, holder: object) -> None:
        with self._lock:
            self._holders.discard(holder)
            while self._undo and not self._holders:
                self._undo[-1]()
                self._undo.pop()
