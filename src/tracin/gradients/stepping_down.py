"""A pass whose audit fails is dropped, and begins again with slower gradient methods."""

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


class SteppedDownError(Exception):
    """The audit failed for some parameters, which take slower methods now: do the pass again."""

    def __init__(self, names: Iterable[str]) -> None:
        listed = ", ".join(sorted(names)) or "forward mode"
        super().__init__(f"a slower method replaces the one of {listed}")


class LearnAgainError(SteppedDownError):
    """What an earlier question showed of the model's calls does not hold: do the pass again."""

    def __init__(self) -> None:
        Exception.__init__(self, "what the model's calls do is learned anew")


def until_settled(work: Callable[[], T]) -> T:
    """Do work that passes over data, again for as long as its audits find slower methods to take.

    Args:
        work: Begins anew whenever it is called, and keeps nothing of an earlier call.
    """
    while True:
        try:
            return work()
        except SteppedDownError as error:
            _log.info("the pass begins again: %s", error)
