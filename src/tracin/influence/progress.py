"""A bar on long work, shown when a person watches."""

from typing import Any

from tqdm.auto import tqdm


def bar(examples: int, what: str, progress: bool | None) -> "tqdm[Any]":
    """A progress bar over `examples`; None shows it on a terminal alone."""
    disable = None if progress is None else not progress
    return tqdm(total=examples, desc=what, unit="ex", disable=disable, leave=False)
