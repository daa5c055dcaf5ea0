"""Blocks that change what belongs to the user, and put it back whatever interrupts them.

An exception can come between any two instructions: Ctrl-C, a signal's handler, a time limit. It
may keep a `finally` from running or break it off half-way, and a generator that is thrown away
runs its own late, once the traceback is gone. So the outermost block of a call puts back what
inner ones left, and after it nothing of theirs runs any more. Enter the outermost one twice, and
an exception that breaks off the first exit finds the second:

    guard = Restoring(put_back)
    with guard, guard:
        ...
"""

import sys
import traceback
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Self

from tracin.signals import Signals


class Restoring:
    """A block at whose end `put_back` is called.

    Args:
        put_back: Puts everything back. It may be broken off and called again, so each thing that
            is back already must be left alone.
    """

    def __init__(self, put_back: Callable[[], None]) -> None:
        self._put_back: Callable[[], None] | None = put_back
        self._outer: Restoring | None = None
        self._inner: list[Restoring] = []  # of the outermost: those that are open within
        self._signals = Signals()
        self._handled: BaseException | None = None  # on entering
        self.is_open = False

    def __enter__(self) -> Self:
        if self.is_open:
            return self
        known = _outermost.get()
        outermost = None if known is None else known()
        if outermost is None or not outermost.is_open:
            _outermost.set(weakref.ref(self))
        else:
            self._outer = outermost
            outermost._inner.append(self)
        self._handled = sys.exc_info()[1]
        self.is_open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        if not self.is_open:
            return
        if self._outer is not None:
            self._end()
            self._outer._inner.remove(self)
            return
        failure: BaseException | None = None
        for _ in range(2):  # the first may be broken off
            try:
                # A second Ctrl-C must not undo what the first one made necessary.
                self._signals.take()
                end_suspended(error, self._handled)
                self._end_all()
                break
            except BaseException as broken:
                failure = failure or broken
        self._signals.release()
        self.is_open = False
        self._signals.deliver()
        if failure is not None:
            raise failure
        # What broke on the way out of an interrupted call is no error of its own.
        interrupt = interrupt_of(error, self._handled)
        if interrupt is not None and interrupt is not error:
            raise interrupt

    def _end_all(self) -> None:
        failure: Exception | None = None
        while self._inner:
            try:
                self._inner[-1]._end()
            except Exception as error:  # what else there is must be put back all the same
                failure = failure or error
            self._inner.pop()
        self._call()
        if failure is not None:
            raise failure

    def _end(self) -> None:
        if self.is_open:
            self._call()
            self.is_open = False

    def _call(self) -> None:
        if self._put_back is not None:
            self._put_back()
            self._put_back = None  # the user's tensors that it knows need not live any longer


def interrupt_of(
    error: BaseException | None, handled: BaseException | None
) -> BaseException | None:
    """The Ctrl-C, or the like, that an error came of; `handled` was there before."""
    for each in chain_of(error, handled):
        if not isinstance(each, Exception | GeneratorExit):
            return each
    return None


def chain_of(error: BaseException | None, handled: BaseException | None) -> list[BaseException]:
    """An error, and those in whose handling it was raised, up to one that was there before."""
    found: list[BaseException] = []
    while error is not None and error is not handled and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def end_suspended(error: BaseException | None, handled: BaseException | None) -> None:
    """After an interrupt: end the generators that are suspended in frames of its traceback.

    Torch's own context managers are such generators, too. Once the traceback is forgotten they
    would put back what they found, a function mode of ours among it, into what is the user's again.
    Other errors keep their frames for a debugger: no block was left without its end by them.
    """
    if interrupt_of(error, handled) is not None:
        for each in chain_of(error, handled):
            traceback.clear_frames(each.__traceback__)


# Weak: one whose exit never came is forgotten with its block.
_outermost: ContextVar[weakref.ref[Restoring] | None] = ContextVar("_outermost", default=None)
