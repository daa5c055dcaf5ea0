"""`-v`: the library's log as lines on standard error, between the steps of its bars."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from tracin.plain_text import plain_lines

LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


@contextmanager
def shown_log(verbose: int) -> Iterator[None]:
    """Show the log while a command runs: warnings, from 1 on what is chosen, from 2 on all."""
    log = logging.getLogger("tracin")
    level, handler = log.level, _Lines()
    log.setLevel(LEVELS[min(verbose, len(LEVELS) - 1)])
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # A bar is taken away for the line, and drawn again below it.
        name = record.name.removeprefix("tracin.")
        tqdm.write(f"{name}: {plain_lines(record.getMessage())}", file=sys.stderr)
