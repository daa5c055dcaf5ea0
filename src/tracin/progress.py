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
    """A progress bar over `total` examples or other units.

    Args:
        total: How many units there are.
        what: The word in front of the bar.
        progress: Whether to show the bar; None shows it only on a terminal.
        unit: The word for one unit.
        done: How many units are finished already; they do not count as speed, so the remaining
            time is right from the start.
        is_kept: Whether the full bar stays on the screen.
        is_scaled: Whether to shorten large counts: 1.2M.
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
