"""Ctrl-C, and every other signal with a handler in Python, held back for a moment."""

import signal
import threading
from types import FrameType
from typing import Any, final


@final
class Signals:
    """Keeps signals waiting between `take` and `deliver`; does nothing outside the main thread.

    Handlers are exchanged, for a blocked signal would reach another thread of the process, and
    Python runs its handler in the main thread all the same. Each method may be called again where
    an exception broke it off.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._is_taken = False

    def take(self) -> None:
        """From here on, signals wait."""
        if self._is_taken or threading.current_thread() is not threading.main_thread():
            return
        self._handlers = {
            int(number): handler
            for number in signal.valid_signals()
            if callable(handler := signal.getsignal(number))
        }
        self._is_taken = True
        for number in self._handlers:
            signal.signal(number, self._note)

    def release(self) -> None:
        """Put the handlers back; what came is still waiting."""
        if self._is_taken:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        self._is_taken = False

    def deliver(self) -> None:
        """Call the handlers of the signals that came."""
        while self._waiting:
            number, frame = self._waiting.pop(0)
            self._handlers[number](number, frame)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._is_taken:
            self._waiting.append((number, frame))
        else:  # an exception kept `release` from putting the handler back
            self._handlers[number](number, frame)
