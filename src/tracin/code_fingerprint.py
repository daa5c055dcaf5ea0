"""Whether a function still computes what it did: a fingerprint of its code and of its settings."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from tracin.files import bytes_of, fingerprint

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_DEEPEST = 20


def code_fingerprint(*things: Any) -> str:
    """Equal for functions and objects of equal source and settings, as far as these can be seen.

    Of a function it sees the source, the defaults, what its closure holds, and the global
    functions, classes, numbers and texts that its code names; of an object its class and its
    attributes; of a `functools.partial` all of it. It does not see other global objects, files, or
    what libraries do.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> slow, fast = partial(torch.optim.SGD, lr=0.1), partial(torch.optim.SGD, lr=0.2)
        >>> code_fingerprint(slow) == code_fingerprint(fast)
        False
    """
    return fingerprint(piece for thing in things for piece in _pieces(thing, (), is_global=False))


def settings_fingerprint(model: Module) -> str:
    """Of a model's attributes other than weights, buffers and modes, such as a temperature."""
    return fingerprint(
        piece
        for name, module in model.named_modules()
        for piece in (f"{name}|", *_pieces(_settings_of(module), (id(model),), is_global=False))
    )


def _pieces(
    thing: Any, above: tuple[int, ...], *, is_global: bool
) -> Iterator[str | bytes | memoryview]:
    if isinstance(thing, _PLAIN):
        yield f"{type(thing).__name__} {thing!r};"
        return
    if id(thing) in above or len(above) >= _DEEPEST:
        return
    above = (*above, id(thing))
    if isinstance(thing, FunctionType):
        yield from _function(thing, above)
    elif isinstance(thing, type):
        yield from _class(thing, above)
    elif isinstance(thing, partial):
        yield from _all([thing.func, thing.args, thing.keywords], above)
    elif isinstance(thing, MethodType):
        yield from _all([thing.__func__, thing.__self__], above)
    elif isinstance(thing, BuiltinFunctionType) or inspect.ismodule(thing):
        yield f"{getattr(thing, '__module__', '')}.{thing.__name__};"
    elif is_global:
        yield f"global {type(thing).__qualname__};"  # it may be anything, and change all the time
    else:
        yield from _value(thing, above)


def _value(thing: Any, above: tuple[int, ...]) -> Iterator[str | bytes | memoryview]:
    if isinstance(thing, Tensor):
        yield f"{thing.dtype} {tuple(thing.shape)};"
        if thing.layout is torch.strided and not thing.is_meta:
            yield bytes_of(thing)
    elif isinstance(thing, np.ndarray | np.generic):
        yield f"{thing.dtype} {thing.shape};"
        yield repr(thing.tolist()) if thing.dtype.hasobject else thing.tobytes()
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield f"{key!r}:" if isinstance(key, _PLAIN) else f"{type(key).__qualname__}:"
            yield from _pieces(value, above, is_global=False)
    elif isinstance(thing, list | tuple):
        yield f"{len(thing)} of;"
        yield from _all(thing, above)
    elif isinstance(thing, set | frozenset):
        yield f"{sorted(map(repr, thing))};"
    elif isinstance(thing, Module):
        yield from _class(type(thing), above)
        yield from _value(dict(thing.state_dict()), above)
        for name, module in thing.named_modules():
            yield f"{name} {type(module).__qualname__}|"
            yield from _value(_settings_of(module), above)
    else:
        yield from _class(type(thing), above)
        yield from _value(getattr(thing, "__dict__", {}), above)


def _all(things: Any, above: tuple[int, ...]) -> Iterator[str | bytes | memoryview]:
    for thing in things:
        yield from _pieces(thing, above, is_global=False)


def _function(function: FunctionType, above: tuple[int, ...]) -> Iterator[str | bytes | memoryview]:
    if _is_of_a_library(function.__module__):
        yield f"{function.__module__}.{function.__qualname__};"
        return
    yield f"{function.__qualname__};"  # a script's module may have another name the next time
    yield _source(function)
    cells = [_content(cell) for cell in function.__closure__ or ()]
    yield from _all([function.__defaults__, function.__kwdefaults__, cells], above)
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield f"{name}="
            yield from _pieces(function.__globals__[name], above, is_global=True)


def _class(kind: type, above: tuple[int, ...]) -> Iterator[str | bytes | memoryview]:
    for one in kind.__mro__:
        if _is_of_a_library(one.__module__):
            yield f"class {one.__module__}.{one.__qualname__};"
            continue
        yield f"class {one.__qualname__};"
        for name, value in vars(one).items():
            inner = getattr(value, "__func__", value)  # of a class method or a static one
            if isinstance(inner, FunctionType) or (
                isinstance(inner, _PLAIN) and not name.startswith("__")
            ):
                yield f"{name}="
                yield from _pieces(inner, above, is_global=False)


def _source(function: FunctionType) -> str:
    code = function.__code__
    compiled = f"{code.co_code.hex()} {[one for one in code.co_consts if isinstance(one, _PLAIN)]}"
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return compiled
    # Python gives the whole line of a lambda, on which there may be others.
    return source + compiled if function.__name__ == "<lambda>" else source


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it has none yet
        return None


def _names(code: CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _is_of_a_library(module: str) -> bool:
    root = module.partition(".")[0]
    return root in sys.stdlib_module_names or root in ("torch", "numpy", "tracin")


def _settings_of(module: Module) -> dict[str, Any]:
    """Numbers, texts, and lists of them that are a module's own attributes."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _is_setting(value)
    }


def _is_setting(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_setting, value))
    if isinstance(value, dict):
        return all(map(_is_setting, value.values()))
    return isinstance(value, (*_PLAIN, Tensor, np.ndarray, FunctionType, partial))
