"""Lines over axes, as numbers that the page's template draws in SVG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 120, 12, 38
POINTS = 200  # of a line: it has no more pixels
APART = 14  # pixels between the names of two lines
TICKS = (0, 0.25, 0.5, 0.75, 1)


@final
@dataclass(frozen=True, eq=False)
class Line:
    """A line by its points; `style` is a class of the style sheet.

    Attributes:
        name: What stands at its end.
        x: [points].
        y: [points].
        style: "s0" to "s5", or "ref" for a line to compare with.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str


@final
@dataclass(frozen=True)
class Chart:
    """Where everything is drawn, in pixels.

    Attributes:
        title: Above the chart.
        x_label: Below it.
        paths: (style, path) of each line.
        ends: (height, name, style) of the name at each line's end.
        x_ticks: (place, text).
        y_ticks: (height, text).
    """

    title: str
    x_label: str
    paths: tuple[tuple[str, str], ...]
    ends: tuple[tuple[float, str, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    top: int = TOP
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def chart(
    title: str,
    lines: Sequence[Line],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    *,
    x_label: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
) -> Chart:
    """Place lines on axes.

    Args:
        title: Above the chart.
        lines: What to draw; points outside `x_range` and those that are no numbers are left out.
        x_range: The ends of the horizontal axis.
        y_range: The ends of the vertical axis.
        x_label: What the horizontal axis is.
        x_text: Writes a value of the horizontal axis.
        y_text: Writes a value of the vertical axis.
    """
    across = _scale(x_range, LEFT, WIDTH - RIGHT)
    upward = _scale(y_range, HEIGHT - BOTTOM, TOP)
    paths, ends = [], []
    for line in lines:
        keep = (line.x >= x_range[0]) & (line.x <= x_range[1]) & np.isfinite(line.y)
        x, y = line.x[keep], line.y[keep]
        if not len(x):
            continue
        at = np.unique(np.linspace(0, len(x) - 1, min(POINTS, len(x))).astype(int))
        points = zip(across(x[at]).tolist(), upward(y[at]).tolist(), strict=True)
        paths.append((line.style, "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in points)))
        ends.append((float(upward(y[-1:])[0]), line.name, line.style))
    ticks = [
        [start + share * (stop - start) for share in TICKS] for start, stop in (x_range, y_range)
    ]
    return Chart(
        title,
        x_label,
        tuple(paths),
        _spread(ends),
        tuple((float(across(np.array(each))), x_text(each)) for each in ticks[0]),
        tuple((float(upward(np.array(each))), y_text(each)) for each in ticks[1]),
    )


def _scale(values: tuple[float, float], start: float, stop: float):  # noqa: ANN202  # a line
    low, high = values
    return lambda value: start + (value - low) / ((high - low) or 1.0) * (stop - start)


def _spread(ends: Sequence[tuple[float, str, str]]) -> tuple[tuple[float, str, str], ...]:
    """The names moved apart, so that each can be read."""
    moved: list[tuple[float, str, str]] = []
    for height, name, style in sorted(ends):
        least = moved[-1][0] + APART if moved else TOP + 4.0
        moved.append((max(height, least), name, style))
    over = max(0.0, moved[-1][0] - (HEIGHT - 4)) if moved else 0.0
    return tuple((height - over, name, style) for height, name, style in moved)
