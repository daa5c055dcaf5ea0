"""One thread at a time uses a model's weights: the others wait, or are refused.

A pass puts a checkpoint's weights into the user's own model, so that a second thread would compute
with the weights of the first one's checkpoint. What counts is the parts: two models that share a
module or a parameter keep each other out. Nothing here outlives a thread: in a process that was
forked, the other threads are dead, and what they held is free.

There is no lock, which an exception at the wrong moment would leave locked for good: a thread that
wants a model enters a queue by one operation on a dict, and polls it until its turn comes.
"""

import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from torch.nn import Module

from tracin.errors import ModelInUseError
from tracin.restoring import Restoring

FIRST_LOOK, LATER_LOOKS = 0.001, 0.05  # seconds


@final
class Hold:
    """A model in use by one thread.

    Args:
        model: The model.
        what: Who uses it, for messages.
        is_brief: Whether it is over by itself, so that others wait for it; a block of the user's
            own may wait for them.
    """

    def __init__(self, model: Module, what: str, *, is_brief: bool) -> None:
        self.what, self.is_brief = what, is_brief
        self.thread = threading.current_thread()
        self.is_taken = False
        self.waits_for: threading.Thread | None = None
        self._model = weakref.ref(model)
        self._parts: frozenset[int] = frozenset()
        self._ticket = next(_tickets)

    def take(self) -> None:
        """Reserve the model for this thread, which may hold it several times.

        What another thread has taken by this very object is handed over.
        """
        model = self._model()
        if model is None:
            raise RuntimeError("the model is gone; a bug in tracin")
        self._parts = parts_of(model)
        me = threading.current_thread()
        if self.thread is not me:
            self.release()
        self.thread = me
        if any(one.is_taken and one.thread is me and self._parts <= one._parts for one in queue()):
            return
        wait = FIRST_LOOK
        try:
            _queue[self._ticket] = weakref.ref(self)
            while (other := self._in_the_way()) is not None:
                if (other.is_taken and not other.is_brief) or is_waited_for(me, other.thread):
                    raise ModelInUseError(_refusal(other))
                self.waits_for = other.thread
                time.sleep(wait)
                wait = min(2 * wait, LATER_LOOKS)
            self.is_taken, self.waits_for = True, None
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others use it; does nothing where it is not held."""
        self.is_taken, self.waits_for = False, None
        _queue.pop(self._ticket, None)

    @property
    def is_alive(self) -> bool:
        """Whether both the model and the thread still exist."""
        return self._model() is not None and self.thread.is_alive()

    def _in_the_way(self) -> "Hold | None":
        """The hold that has a part of the model, or came first for one."""
        is_before = True
        for one in queue():
            if one is self:
                is_before = False
            elif one.thread is self.thread or self._parts.isdisjoint(one._parts):
                continue
            # One that waits for this thread can begin only after it.
            elif one.is_taken or (is_before and not is_waited_for(self.thread, one.thread)):
                return one
        return None


_tickets = itertools.count()
_queue: dict[int, weakref.ref[Hold]] = {}


def queue() -> list[Hold]:
    """All holds that are taken or waiting, in the order in which they came.

    An exception may have kept one from being released: it is gone with its block.
    """
    holds = [(ticket, each()) for ticket, each in list(_queue.items())]
    for ticket, one in holds:
        if one is None or not one.is_alive:
            _queue.pop(ticket, None)
    return [one for _, one in holds if one is not None and one.is_alive]


@contextmanager
def owned(model: Module, what: str, *, is_brief: bool = False) -> Iterator[None]:
    """Reserve a model for a block; other threads wait for a brief one, and else are refused."""
    hold = Hold(model, what, is_brief=is_brief)
    restoring = Restoring(hold.release)
    with restoring, restoring:
        hold.take()
        yield


def parts_of(model: Module) -> frozenset[int]:
    """What two models have in common if they share anything: modules, parameters, buffers."""
    found: set[int] = set()
    for module in model.modules():  # one walk: parameters() and buffers() would walk again
        found.add(id(module))
        for table in (module._parameters, module._buffers):
            found.update(id(one) for one in table.values() if one is not None)
    return frozenset(found)


def is_waited_for(me: threading.Thread, other: threading.Thread) -> bool:
    """Whether the other thread waits for this one, directly or through others."""
    seen: set[threading.Thread] = set()
    waits = {one.thread: one.waits_for for one in queue() if one.waits_for is not None}
    while other not in seen and other in waits:
        seen.add(other)
        other = waits[other]
        if other is me:
            return True
    return False


def _refusal(other: Hold) -> str:
    return (
        f"The model, or a part of it, is in use by {other.what} in the thread "
        f"'{other.thread.name}', and must keep its weights there. Wait until that is over, or give "
        "each thread a model of its own: copy.deepcopy(model)."
    )
