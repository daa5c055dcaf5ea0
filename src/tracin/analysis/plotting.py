"""The axes that a result draws itself on; matplotlib is imported when the first is drawn."""

from typing import Any

from tracin.errors import QueryError


def axes_for(ax: Any) -> Any:
    """The given matplotlib axes, or those of a new figure.

    Args:
        ax: Axes, or None for a new figure of pyplot's, which notebooks show by themselves.

    Raises:
        QueryError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise QueryError(
            "Plots are drawn by matplotlib, which is not installed: pip install matplotlib. The "
            "same numbers are in columns(), and print() shows them."
        ) from error
    return pyplot.subplots(layout="constrained")[1]


def as_percent(axis: Any) -> None:
    """Write the ticks of a matplotlib axis, shares from 0 to 1, as percentages."""
    axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
