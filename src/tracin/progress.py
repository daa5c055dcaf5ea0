"""The progress bar of long work."""

from typing import Any

from tqdm.auto import tqdm


def bar(
    total: int,
    what: str,
    progress: bool | None,
    unit: str = "ex",
    *,
    done: int = 0,
    is_kept: bool = False,
    is_scaled: bool = False,
) -> "tqdm[Any]":
    """A progress bar over `total` units, shown by default only on a terminal.

    Units that are `done` already do not count as speed, so the remaining time is right from the
    start. The bar stays on the screen if `is_kept`; `is_scaled` shortens large counts, as in 1.2M.
    """
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        unit_scale=is_scaled,
        disable=None if progress is None else not progress,
        leave=is_kept,
    )
