"""Which examples of which batches are audited: a few per cent of a long pass, all of a tiny one.

The first batch, batches 2, 4, 8, ... and the last one. Whole batches are audited as long as an
allowance lasts, which grows with the pass; after that a stretch of a few examples at a random place
of a batch is compared with what the stretch gives as a batch of its own. The first batch is short
and audited whole, unless another pass at the same weights has just shown as much.
"""

import random
from collections.abc import Collection
from typing import final

SHARE = 64  # of the examples of a pass, and of a batch: one in so many
FEW = 4  # examples that are audited in a whole batch at least
# In how many smaller batches a whole one is computed again. Two examples whose losses depend on
# each other are in different ones three times out of four.
GROUPS = 4
PATHS = 16  # ways through a model that are audited one by one
BYTES = 1 << 20  # of activations whose audit nobody notices


@final
class Schedule:
    """Counts the batches of one pass.

    Args:
        examples: How many the pass has.
        held: Bytes of activations that one example keeps for the backward pass.
        shown: The ways through the model of which whole batches were audited at the same weights.
    """

    def __init__(self, examples: int, held: int, shown: Collection[int] = ()) -> None:
        self._examples = examples
        self._is_shown = bool(shown)
        self._allowance = max(FEW, examples // SHARE, BYTES // max(1, held))
        self._count = 0
        self._paths = set(shown)
        self._before = self._allowance, 0  # the last batch: the allowance, and how many there were
        self._added: int | None = None  # the way that the last batch was the first to take
        self._random = random.Random(examples)

    @property
    def first(self) -> int:
        """The most examples for the first batch, so that all of it can be audited for little."""
        if self._is_shown and self._allowance == FEW:
            return max(FEW, self._examples)
        return max(FEW, self._allowance // 2)

    def is_new(self, path: int | None, *, is_audited: bool) -> bool:
        """Whether a batch that was not audited called other functions than all that were.

        What data alone decides (an outlier, an empty expert) may move examples as no batch before.
        Of models that never call the same ones again, batches are chosen ever more rarely.

        Args:
            path: What tells the functions that were called; None where they were not watched.
            is_audited: Whether the batch was audited.
        """
        if path is None or path in self._paths:
            return False
        self._paths.add(path)
        self._added = path
        count = len(self._paths)
        return not is_audited and (count <= PATHS or count & (count - 1) == 0)

    def next(self, size: int, is_last: bool) -> range | None:
        """Which rows of the next batch to audit; None for none.

        Args:
            size: How many examples the batch has.
            is_last: Whether it is the last of the pass.
        """
        self._before, self._added = (self._allowance, self._count), None
        self._count += 1
        is_due = self._count & (self._count - 1) == 0  # a power of two
        if not (is_due or is_last):
            return None
        is_first = self._count == 1
        if (is_first and not self._is_shown) or size <= self._allowance:
            self._allowance -= size
            return range(size)
        some = min(size, max(FEW if is_first else 2, size // SHARE))
        start = self._random.randrange(size - some + 1)
        return range(start, start + some)

    def take_back(self) -> None:
        """Forget the last batch: its pass failed, and the next one is in its place."""
        self._allowance, self._count = self._before
        if self._added is not None:
            self._paths.discard(self._added)
            self._added = None
