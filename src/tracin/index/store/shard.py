"""The rows of one file, decoded when they are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from tracin.index.store.layout import ROWS, SCALES, damaged
from tracin.index.store.manifest import Manifest, Unit
from tracin.index.store.number_format import is_finite, number_format


@final
@dataclass(frozen=True)
class Shard:
    """The content of one file; rows are decoded when they are read.

    Attributes:
        unit: Which rows, at which checkpoint.
        tensors: By name: "rows", "scales", and the extra columns.
        manifest: Of the index.
        check: Compares the rows with their checksum, if that was not done since the file changed.
        name: Of the file, for errors.
    """

    unit: Unit
    tensors: Mapping[str, Tensor]
    manifest: Manifest
    check: Callable[[], None]
    name: str

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop`, counted from its first: [n, width], float32.

        Raises:
            IndexingError: The rows are not as they were written.
        """
        self.check()
        return self._decoded(self.tensors[ROWS][start:stop], self.tensors[SCALES][start:stop])

    def unscaled(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Rows `start` to `stop` before each piece is multiplied by its scale, and the scales.

        Returns:
            [n, width], float32, and [n, pieces], or None where the format has no scales.

        Raises:
            IndexingError: The rows are not as they were written.
        """
        self.check()
        has_scale = number_format(self.manifest.number_format).has_scale
        scales = self.tensors[SCALES][start:stop] if has_scale else None
        return self.tensors[ROWS][start:stop].float(), scales

    def chosen(self, places: Tensor) -> Tensor:
        """The rows at these places: [places, width], float32; a few, so nothing is compared."""
        return self._decoded(self.tensors[ROWS][places], self.tensors[SCALES][places])

    def refuse_non_finite(self, numbers: Tensor) -> None:
        """What is made of the rows must be finite, as all is that is written.

        Raises:
            IndexingError: It is not.
        """
        if not is_finite(numbers):
            raise damaged(self.name, "its rows hold NaN or infinity, or their scores overflow")

    def _decoded(self, kept: Tensor, scales: Tensor) -> Tensor:
        how = number_format(self.manifest.number_format)
        rows = how.decode(kept, scales, self.manifest.pieces)
        self.refuse_non_finite(rows)
        return rows
