"""Paired timing: each round runs every work once, so that a slow moment slows all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

Work = Callable[[], object]


@final
@dataclass(frozen=True)
class Ratio:
    """How long one work took relative to another, over rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, seconds: Sequence[float], to: Sequence[float]) -> "Ratio":
        """From the seconds of both in the same rounds."""
        ratios = [one / other for one, other in zip(seconds, to, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


def timed(works: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """The seconds of each work in each round; who goes first alternates.

    Nothing is warmed up here: run each work once before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    order = list(works)
    for _ in range(rounds):
        for name in order:
            gc.collect()
            start = time.perf_counter()
            works[name]()
            seconds[name].append(time.perf_counter() - start)
        order.reverse()
    return seconds
