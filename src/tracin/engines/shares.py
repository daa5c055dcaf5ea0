"""Divides units among workers: neighbouring ones for each, and help for those that are slow."""

from collections import deque
from collections.abc import Sequence
from typing import final


def stretches(weights: Sequence[int], parts: int) -> list[range]:
    """Cut places 0, 1, ... into stretches of about equal weight; each place is in one.

    Example:
        >>> stretches([1, 1, 1, 1, 4], 2)
        [range(0, 4), range(4, 5)]
    """
    if not sum(weights):
        weights = [1] * len(weights)
    total, before, starts = sum(weights), 0, [0] * (parts + 1)
    for weight in weights:
        # A place belongs where its middle falls, in whole numbers: all ranks must cut alike.
        starts[(2 * before + weight) * parts // (2 * total) + 1] += 1
        before += weight
    for part in range(parts):
        starts[part + 1] += starts[part]
    return [range(starts[part], starts[part + 1]) for part in range(parts)]


@final
class UnitShares:
    """Hands out places: each worker's own stretch in order, then half of the longest one left.

    A stretch mostly lies in one checkpoint, so a worker seldom loads another; half of what is
    left, from its far end, is worth a load.
    """

    def __init__(self, places: Sequence[int], weights: Sequence[int], workers: int) -> None:
        self._weights = dict(zip(places, weights, strict=True))
        self._left = [deque(places[s.start : s.stop]) for s in stretches(weights, workers)]

    def take(self, worker: int) -> int | None:
        """The next place for a worker; None when all are handed out."""
        own = self._left[worker]
        if not own:
            longest = max(self._left, key=self._length)
            own.extendleft(longest.pop() for _ in range((len(longest) + 1) // 2))
        return own.popleft() if own else None

    def give_back(self, worker: int, place: int) -> None:
        """Return the place of a worker that died; its replacement takes it first."""
        self._left[worker].appendleft(place)

    def _length(self, share: deque[int]) -> tuple[int, int]:
        """By weight; units without examples count where there is nothing else."""
        return sum(self._weights[place] for place in share), len(share)
