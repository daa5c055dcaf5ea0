"""The block around a call, which restores the user's model and settings however it ends."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, Self, TypeVar, final

from torch.nn import Module

from tracin.guards.model_state import ModelState
from tracin.guards.ownership import Hold
from tracin.guards.settings import ThreadSettings
from tracin.guards.shared_settings import SharedSettings
from tracin.restoring import Restoring
from tracin.sharding import rest

P = ParamSpec("P")
R = TypeVar("R")


@final
class Guard(Restoring):
    """Reserves a model for this thread, and restores all that a block changes.

    That is: each module's attributes, mode, hooks and tables of tensors; each tensor's memory,
    `.grad` and `requires_grad`; grad mode, autocast, function modes and the like; the random
    state, and torch's switches. Not the numbers in the user's own memory. Entering
    changes nothing.

    Args:
        model: The model.
        what: Who uses it, for messages to other threads.
        is_brief: Whether other threads wait for the end of the block, or are refused.

    Raises:
        ModelInUseError: On entering: another thread holds the model indefinitely.

    Example:
        >>> import torch
        >>> model = torch.nn.Dropout(0.5)
        >>> guard = Guard(model)
        >>> with guard, guard:
        ...     _ = model.eval()
        >>> model.training
        True
    """

    def __init__(self, model: Module, what: str = "a pass", *, is_brief: bool = True) -> None:
        super().__init__(self._restore)
        self._model = model
        self._hold = Hold(model, what, is_brief=is_brief)
        self._state: ModelState | None = None
        self._settings: ThreadSettings | None = None
        self._shared = SharedSettings()

    def __enter__(self) -> Self:
        if self.is_open:
            return self
        try:
            self._hold.take()
            rest(self._model)
            self._shared.join()
            self._settings = ThreadSettings.now()
            self._state = ModelState.of(self._model)
            return super().__enter__()
        except BaseException:
            self._shared.leave()
            self._hold.release()
            raise

    def _restore(self) -> None:
        if self._settings is not None:
            self._settings.put_back()
        if self._state is not None:
            rest(self._model)
            self._state.put_back()
        self._shared.leave()
        self._hold.release()
        self._state = None


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function restore the model of its `run`, or of `self`, and all settings."""
    signature = inspect.signature(function)
    name = function.__qualname__

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:  # Python's own error is clearer
            return function(*args, **kwargs)
        run = arguments.get("run", arguments.get("self"))
        model = getattr(getattr(run, "run", run), "model", None)
        if not isinstance(model, Module):
            return function(*args, **kwargs)
        guard = Guard(model, name)
        with guard, guard:
            return function(*args, **kwargs)

    return call
