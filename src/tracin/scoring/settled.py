"""Public calls pass over the data again where an audit needs a slower gradient method."""

from collections.abc import Callable
from functools import partial, wraps
from typing import ParamSpec, TypeVar

from tracin.gradients import until_settled

P = ParamSpec("P")
T = TypeVar("T")


def settled(call: Callable[P, T]) -> Callable[P, T]:
    """Decorate a call that begins anew each time: nothing of a pass that failed is kept."""

    @wraps(call)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        return until_settled(partial(call, *args, **kwargs))

    return again
