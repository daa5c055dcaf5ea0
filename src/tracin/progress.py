"""The progress bar of long work."""

import sys
import warnings
from typing import Any

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # In a notebook without ipywidgets tqdm says so, and then draws with characters.
    warnings.simplefilter("ignore", TqdmWarning)
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
    """A progress bar over `total` units, shown by default only on a terminal and in a notebook.

    Units that are `done` already do not count as speed, so the remaining time is right from the
    start. The bar stays on the screen if `is_kept`; `is_scaled` shortens large counts, as in 1.2M.
    """
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        unit_scale=is_scaled,
        disable=_is_hidden(progress),
        leave=is_kept,
    )


def _is_hidden(progress: bool | None) -> bool | None:
    """As tqdm takes it: None hides a bar unless the output is a terminal."""
    if progress is None:
        # A notebook's output is no terminal, and shows bars all the same.
        return False if is_notebook() else None
    return not progress


def is_notebook() -> bool:
    """Whether this code runs in the kernel of a notebook, such as Jupyter's or Colab's."""
    # Where a notebook runs, IPython is loaded already.
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_ipython is None else get_ipython()
    return "IPKernelApp" in getattr(shell, "config", ())
