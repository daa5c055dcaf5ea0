"""Gives the model a batch's own memory for as long as it only reads it, and copies from then on."""

from dataclasses import dataclass
from typing import final

from tracin.data import Batch, copied
from tracin.errors import DataError
from tracin.gradients.writing import shared, storages, versions


@final
@dataclass(frozen=True)
class Lent:
    """A batch as the model gets it.

    Attributes:
        batch: The batch's own memory, or a copy.
        is_copy: Whether it is a copy.
        kept: The storages that no call may write to.
        versions: How often each tensor was changed before the model got it.
    """

    batch: Batch
    is_copy: bool
    kept: frozenset[int]
    versions: list[int]


@final
class BatchMemory:
    """Knows from earlier batches whether the model writes into them; the first one is a copy."""

    def __init__(self) -> None:
        self._writes: bool | None = None

    def lend(self, batch: Batch) -> Lent:
        """The batch's own memory where that is safe, or else a copy."""
        given = None if self._writes is not False else shared(batch)
        if given is None:
            own = copied(batch)
            return Lent(own, True, frozenset(), versions(own))
        return Lent(given, False, storages(given), versions(given))

    def copy_from_now_on(self) -> None:
        """The model is about to write into its batch: lend copies alone."""
        self._writes = True

    def take_back(self, lent: Lent) -> None:
        """After a pass: note whether the model wrote.

        Raises:
            DataError: It wrote into the batch's own memory, unseen.
        """
        has_written = versions(lent.batch) != lent.versions
        if lent.is_copy:
            self._writes = bool(self._writes) or has_written
        elif has_written:
            raise DataError(
                "The model or its loss wrote into its batch in code that torch's function modes do "
                "not see, such as a scripted function, after it had left the first batch alone: "
                "some of the data in memory was changed. Give it tensors of its own, by a Dataset "
                "that clones."
            )
