"""The tensors among a call's arguments."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Every tensor among a call's arguments, in order, those inside lists and tuples too."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value, {})
