"""Checks of a batch whose answers lie on a device: noted while it runs, read once at its end.

Each answer that the host asks for by itself lets the device run dry. So a check notes its answer,
and the batch goes on as if all were well. If it was not, the batch is computed again with each
check made where it stands, which raises the error or takes the slower way.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import final

import torch
from torch import Tensor

from tracin.host import is_remote, to_host


class LookAgainError(Exception):
    """A check found something: compute the batch again, with each check made where it stands."""


@final
class LateChecks:
    """The answers that a batch has noted so far.

    Example:
        >>> checks = LateChecks()
        >>> checks.note(torch.tensor(False))
        >>> checks.fetched([torch.ones(1)])
        [tensor([1.])]
    """

    def __init__(self) -> None:
        self._noted: list[tuple[Tensor, Callable[[], None]]] = []

    def note(self, answer: Tensor, then: Callable[[], None] | None = None) -> None:
        """Note what a check found.

        Args:
            answer: Whether something was found: [].
            then: What to do in that case; None computes the batch again.
        """
        self._noted.append((answer, then or _look_again))

    def fetched(
        self, tensors: Sequence[Tensor | None], meanwhile: Callable[[], None] | None = None
    ) -> list[Tensor | None]:
        """These tensors on the host, after one wait, if no check found anything.

        Args:
            tensors: What the batch gave; None stays None.
            meanwhile: What to do while the device computes.

        Raises:
            LookAgainError: A check found something.
        """
        answers = torch.stack([each for each, _ in self._noted]) if self._noted else None
        answers, *found = to_host([answers, *tensors], meanwhile)
        if answers is not None:
            for is_found, (_, then) in zip(answers.tolist(), self._noted, strict=True):
                if is_found:
                    then()
        return found


@contextmanager
def late_checks(device: torch.device) -> Iterator[LateChecks | None]:
    """Let checks of losses wait within the block, if they are about numbers on a device.

    Yields:
        What takes the answers; None for the host's own numbers, which are looked at at once.
    """
    if not is_remote(device):
        yield None
        return
    checks = LateChecks()
    token = _open.set(checks)
    try:
        yield checks
    finally:
        _open.reset(token)


def open_checks(tensor: Tensor) -> LateChecks | None:
    """What takes answers about these numbers in this thread; None where checks do not wait."""
    return _open.get() if is_remote(tensor.device) else None


def look_again_if(answer: Tensor, checks: LateChecks | None) -> None:
    """Have the batch computed again if this is true.

    Raises:
        LookAgainError: It is, and is known at once.
    """
    if checks is not None:
        checks.note(answer)
    elif bool(answer):
        raise LookAgainError


def _look_again() -> None:
    raise LookAgainError


_open: ContextVar[LateChecks | None] = ContextVar("late_checks", default=None)
