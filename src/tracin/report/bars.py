"""The small bars that show a score checkpoint by checkpoint."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from tracin.report.numbers import readable

WIDTH, HEIGHT = 96, 30
MOST = 24  # bars: more of them are too thin to see


@final
@dataclass(frozen=True)
class Bars:
    """Bars up and down from a line in the middle.

    Attributes:
        up: The path, in SVG's language, of the positive shares.
        down: Of the negative shares.
        words: The same as text.
    """

    up: str
    down: str
    words: str


def summed_neighbours(shares: Sequence[float], most: int = MOST) -> list[float]:
    """Shares of neighbouring checkpoints added up, so that there are at most `most`.

    Example:
        >>> summed_neighbours([1.0, 2.0, 3.0, 4.0, 5.0], most=3)
        [3.0, 7.0, 5.0]
    """
    each = max(1, math.ceil(len(shares) / most))
    return [math.fsum(shares[at : at + each]) for at in range(0, len(shares), each)]


def bars(shares: Sequence[float], largest: float) -> Bars:
    """Draw the shares; `largest` is the size, positive, of the longest bar there may be.

    Example:
        >>> bars([2.0, -1.0], largest=2.0).up
        'M0,15v-14h47v14z'
    """
    paths = {True: "", False: ""}
    width = WIDTH / len(shares) if shares else WIDTH
    for at, share in enumerate(shares):
        length = abs(share) / largest * (HEIGHT / 2 - 1) if largest and math.isfinite(share) else 0
        length = max(length, 0.6)
        sign = "-" if share >= 0 else ""
        back = "" if share >= 0 else "-"
        path = f"M{at * width:.3g},15v{sign}{length:.3g}h{width - 1:.3g}v{back}{length:.3g}z"
        paths[share >= 0] += path
    words = ", ".join(map(readable, shares))
    return Bars(paths[True], paths[False], f"by checkpoint: {words}")
