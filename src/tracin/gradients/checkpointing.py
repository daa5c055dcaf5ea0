"""Lets the watch see where stretches under activation checkpointing begin and end.

`torch.utils.checkpoint.checkpoint` looks up by name what runs a stretch; during a pass these names
stand for functions that tell the watch first. Without a watch in the calling thread they do what
torch's own do. Under a transform of torch.func, where checkpointing is an error, they run a stretch
as it stands.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache, partial, wraps
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import checkpoint as module
from torch.utils._pytree import tree_map_only

from tracin.gradients.layouts import ShapeRecorder
from tracin.gradients.regions import Contexts, Repetition
from tracin.gradients.watch import FunctionWatch
from tracin.process_wide import Setting, Undo
from tracin.torch_internals import (
    CHECKPOINTED_AGAIN,
    CHECKPOINTED_REENTRANT,
    function_modes,
    is_transformed,
)


def _watching(*kinds: type[Any]) -> Any:
    """The watch of this thread's calls, if the backward pass is not the user's own, else None."""
    found = next((mode for mode in function_modes() if isinstance(mode, kinds)), None)
    return None if found is None or found.is_live else found


def _announced(
    generator: Callable[..., Any],
    named: int,
    function: Callable[..., Any],
    preserve_rng_state: bool,
    context_fn: Callable[[], Contexts],
    /,
    *rest: Any,
    **kwargs: Any,
) -> Any:
    """What runs a stretch and repeats it; both runs are announced to the watch.

    Args:
        generator: torch's own.
        named: How many arguments it has before those of the stretch.
        function: The stretch.
        preserve_rng_state: Handed on, as is the rest.
        context_fn: Makes the contexts of the two runs.
        rest: What else the generator takes, then the arguments of the stretch.
        kwargs: The stretch's by name.
    """
    if is_transformed():
        return _once()  # torch.func allows no second run
    watching: FunctionWatch | Repetition | None = _watching(FunctionWatch, Repetition)
    debug = rest[1]  # keeps the stretch's contexts for itself
    if watching is None or debug or not torch.is_grad_enabled():
        return generator(function, preserve_rng_state, context_fn, *rest, **kwargs)
    # Autograd keeps inputs of a stretch and may return other objects for those made of parameters.
    leaves = {
        place: value
        for place, value in enumerate(rest[named - 3 :])
        if isinstance(value, Tensor) and watching.is_leaf(value)
    }

    def repeated(*args: Any, **kwargs: Any) -> Any:
        return function(*(leaves.get(at, value) for at, value in enumerate(args)), **kwargs)

    def contexts() -> Contexts:
        first, again = context_fn()
        own_first, own_again = watching.checkpoint()
        return _Both(first, own_first), _Both(again, own_again)

    return generator(repeated, preserve_rng_state, contexts, *rest, **kwargs)


def _once() -> Iterator[None]:
    """Runs a stretch as if it stood there without checkpointing."""
    yield


@final
class _Both(AbstractContextManager[None]):
    """Two contexts in one, which may be entered again."""

    def __init__(self, *contexts: AbstractContextManager[Any]) -> None:
        self._contexts = contexts
        self._entered: list[ExitStack] = []

    def __enter__(self) -> None:
        stack = ExitStack()
        with stack:
            for context in self._contexts:
                stack.enter_context(context)
            self._entered.append(stack.pop_all())

    def __exit__(self, *error: Any) -> bool | None:
        return self._entered.pop().__exit__(*error)


@final
class _NotReentrant:
    """In place of torch's reentrant way, which makes a graph of its own for each stretch."""

    def __init__(self, reentrant: Any) -> None:
        self._reentrant = reentrant

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reentrant, name)

    def apply(self, run_function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        met = _met.get()
        if met is not None:
            met.append(True)
        if is_transformed():
            return run_function(*args)
        if _watching(FunctionWatch, Repetition, ShapeRecorder) is None:
            return self._reentrant.apply(run_function, preserve_rng_state, *args)
        if not any(isinstance(one, Tensor) and one.requires_grad for one in args):
            # The reentrant way gives such a stretch no gradients, and training had none.
            with torch.no_grad():
                return run_function(*args)
        outputs = module.checkpoint(
            run_function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )
        # It follows what is returned by itself or in a tuple, and nothing within lists or dicts.
        if isinstance(outputs, tuple):
            return tuple(map(_followed, outputs))
        return _followed(outputs)


def _followed(output: Any) -> Any:
    return output if isinstance(output, Tensor) else tree_map_only(Tensor, Tensor.detach, output)


@cache
def _replacements() -> tuple[tuple[str, Any, Any], ...]:
    """The names in torch's module, what stands there, and what stands there during a pass."""
    again = getattr(module, CHECKPOINTED_AGAIN, None)
    reentrant = getattr(module, CHECKPOINTED_REENTRANT, None)
    if again is None or reentrant is None:
        return ()
    kinds = [each.kind for each in inspect.signature(again).parameters.values()]
    named = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    announced = wraps(again)(partial(_announced, again, named))
    return (
        (CHECKPOINTED_AGAIN, again, announced),
        (CHECKPOINTED_REENTRANT, reentrant, _NotReentrant(reentrant)),
    )


def _change(keep: Callable[[Undo], None]) -> None:
    for name, theirs, ours in _replacements():
        keep(partial(setattr, module, name, theirs))
        setattr(module, name, ours)


# Held during passes that watch what a model calls.
watched_checkpoints = Setting(_change)


@contextmanager
def reentrant_stretches() -> Iterator[list[bool]]:
    """Note each stretch that a model runs the reentrant way.

    Such a stretch has gradients only where its inputs require grad, so that weights which training
    changed must require grad in a pass as well, whichever of them are asked about.

    Yields:
        One entry per stretch that was met so far.
    """
    met: list[bool] = []
    token = _met.set(met)
    try:
        with watched_checkpoints():
            yield met
    finally:
        _met.reset(token)


_met: ContextVar[list[bool] | None] = ContextVar("met_reentrant_stretches", default=None)
