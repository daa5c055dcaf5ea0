"""Functions that torch hands over whole, opened so that the parameters inside are seen in use."""

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

from torch.nn import functional as F

# Written in Python by torch, made of calls that have rules of their own.
_COMPOSITES = frozenset({F.multi_head_attention_forward})


def opened(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """The same function without its own check for overrides, or None if it is not to be opened.

    Under a TorchFunctionMode torch would hand `func` itself to the mode again instead of running
    its body; this copy runs the body, whose calls the mode then sees one by one.
    """
    return _without_check(func) if func in _COMPOSITES else None


@cache
def _without_check(func: FunctionType) -> Callable[..., Any]:
    unchecked = {"has_torch_function": lambda tensors: False}
    body = FunctionType(
        func.__code__,
        {**func.__globals__, **unchecked},
        func.__name__,
        func.__defaults__,
        func.__closure__,
    )
    body.__kwdefaults__ = func.__kwdefaults__
    return body
