"""Whether the data gives the same examples each time: augmentation and random collators do not."""

import math
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from torch import Tensor

from tracin.data.arrangement import is_strided
from tracin.data.batches import Batch, Entries, leaves
from tracin.data.examples import Examples
from tracin.errors import DataWarning
from tracin.random_state import same_random_state

# A coin flip that leaves an example as it is leaves all of so many with one chance in 256.
LOOKED_AT = 8


def warn_if_changing(examples: Examples, positions: Sequence[int]) -> None:
    """Fetch the first of `positions` twice, and warn where the examples differ.

    The same `Examples` are looked at once. Columns in memory cannot change and are not looked at;
    the random states of Python, NumPy and torch come back as they were.
    """
    if examples.is_compared:
        return
    examples.is_compared = True
    if examples.is_stored:
        return
    few = positions[:LOOKED_AT]
    with same_random_state():
        path = _difference(_fetched(examples, few), _fetched(examples, few))
    if path is not None:
        warnings.warn(
            f"The data changes from one fetch to the next: batch{path} of {examples.name}, fetched "
            "twice, had other values (augmentation, or a collate_fn that draws random numbers). "
            "Each score belongs to what was fetched for it, so scores change from call to call. "
            "Switch augmentation off, or draw each example's random numbers from a generator "
            "seeded with its position.",
            DataWarning,
            stacklevel=2,
        )


def _fetched(examples: Examples, positions: Sequence[int]) -> list[Batch]:
    if examples.alone is not None:
        return [examples.take([position]) for position in positions]
    return [examples.take(positions)]


def _difference(once: list[Batch], again: list[Batch]) -> str | None:
    """The path of the first leaf that differs."""
    for one, other in zip(once, again, strict=True):
        for (path, leaf), (_, second) in zip_longest(
            leaves(one), leaves(other), fillvalue=("", None)
        ):
            if not _are_equal(leaf, second):
                return path
    return None


def _are_equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return not is_strided(one) or _same_numbers(one.detach(), other.detach())
    if isinstance(one, np.ndarray):
        if one.dtype.kind in "fc":
            return np.array_equal(one, other, equal_nan=True)
        return np.array_equal(one, other)
    if isinstance(one, Entries | list | tuple):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    # Objects of other kinds may compare by identity; their tensors are what a model sees.
    if isinstance(one, str | bytes | int | bool | None):
        return one == other
    attributes = getattr(one, "__dict__", {}), getattr(other, "__dict__", {})
    return all(
        _are_equal(value, attributes[1].get(name))
        for name, value in attributes[0].items()
        if isinstance(value, Tensor)
    )


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())  # NaN equals NaN here
