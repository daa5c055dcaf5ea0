"""A bar on long work, shown when a person watches."""

from typing import Any

from tqdm.auto import tqdm


def bar(total: int, what: str, progress: bool | None, unit: str = "ex") -> "tqdm[Any]":
    """A progress bar over `total` examples, or other units; None shows it on a terminal alone."""
    disable = None if progress is None else not progress
    return tqdm(total=total, desc=what, unit=unit, disable=disable, leave=False)
