"""Parameter names without the prefixes that wrappers add, so that wrapped and bare models meet."""

import re
from collections.abc import Mapping
from typing import TypeVar

from tracin.wrappers import COMPILED

Value = TypeVar("Value")

DATA_PARALLEL = "module."
WRAPPED = re.compile(r"\A(?:module\.)+")


def bare_name(name: str) -> str:
    """The name a parameter has in the model itself, without the wrappers around it.

    `torch.compile` puts `_orig_mod.` before a name (or within it, where a part of the model was
    compiled), data parallel training puts `module.` before it; they come in either order.

    >>> bare_name("module._orig_mod.encoder._orig_mod.weight")
    'encoder.weight'
    """
    kept = ".".join(part for part in name.split(".") if part != COMPILED)
    return WRAPPED.sub("", kept, count=1)


def without_wrappers(named: Mapping[str, Value]) -> dict[str, Value]:
    """The same values under bare names, or under their own where bare ones would collide."""
    bare = {bare_name(name): value for name, value in named.items()}
    return bare if len(bare) == len(named) else dict(named)
