"""How the numbers of rows are kept: in fewer bits, and none too small for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.errors import IndexingError

# The largest number of a piece is brought to this power of two: far from the end of float16, so
# that its small numbers are as far as they can be from zero.
_TOP = 14
# Numbers that are encoded at once: far more than the calls' own cost, and 16 MiB a temporary.
_BLOCK = 1 << 22


@final
@dataclass(frozen=True)
class NumberFormat:
    """A format that rows are stored in.

    Attributes:
        name: As in the manifest.
        dtype: Of the kept numbers.
        has_scale: Whether each piece of a row is divided by a number of its own.
        bytes: An entry's size.
    """

    name: str
    dtype: torch.dtype
    has_scale: bool
    bytes: int

    def encode(
        self, rows: Tensor, pieces: Sequence[tuple[int, int]], kept: Tensor, scales: Tensor
    ) -> None:
        """Put rows where they are kept.

        Args:
            rows: [n, width], float32.
            pieces: Columns (start, stop) that have a scale of their own, all columns together.
            kept: [n, width] of this dtype: where to.
            scales: [n, pieces], float32: where to put what was divided by; [n, 0] without scales.

        Raises:
            IndexingError: A number is NaN or infinite.
        """
        step = max(1, _BLOCK // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            self._encode(rows[block], pieces, kept[block], scales[block])

    def _encode(
        self, rows: Tensor, pieces: Sequence[tuple[int, int]], kept: Tensor, scales: Tensor
    ) -> None:
        if not is_finite(rows):
            raise IndexingError(
                "Rows of an index must be finite, but one holds NaN or infinity: gradients this "
                "large overflow float32. Leave the example or the checkpoint out."
            )
        if not self.has_scale:
            kept.copy_(rows)
            return
        for at, (start, stop) in enumerate(pieces):
            piece = rows[:, start:stop]
            # The norm says the same, four times as slowly.
            largest = torch.maximum(piece.amax(1), -piece.amin(1))
            scales[:, at] = scale = self._scale(largest)
            divided = piece / scale[:, None]
            if self.dtype == torch.int8:
                divided.round_()
            kept[:, start:stop] = divided

    def decode(self, kept: Tensor, scales: Tensor, pieces: Sequence[tuple[int, int]]) -> Tensor:
        """The rows again: [n, width], float32."""
        rows = kept.float()
        if self.has_scale:
            for at, (start, stop) in enumerate(pieces):
                rows[:, start:stop] *= scales[:, at : at + 1]
        return rows

    def _scale(self, largest: Tensor) -> Tensor:
        if self.dtype == torch.int8:
            scale = largest / 127
        else:
            # A power of two: dividing by it loses nothing.
            scale = torch.exp2(torch.ceil(torch.log2(largest)) - _TOP)
        return torch.where(scale > 0, scale, torch.ones_like(scale))


FORMATS: Mapping[str, NumberFormat] = {
    each.name: each
    for each in (
        NumberFormat("float16", torch.float16, has_scale=True, bytes=2),
        NumberFormat("int8", torch.int8, has_scale=True, bytes=1),
        NumberFormat("float32", torch.float32, has_scale=False, bytes=4),
    )
}


def number_format(name: str) -> NumberFormat:
    """The format of this name.

    Raises:
        IndexingError: There is none.

    Example:
        >>> number_format("float16").bytes
        2
    """
    if name not in FORMATS:
        raise IndexingError(
            f"number_format is one of {', '.join(map(repr, FORMATS))}; got {name!r}."
        )
    return FORMATS[name]


def is_finite(numbers: Tensor) -> bool:
    """Whether all are; a finite sum says so at once."""
    return bool(torch.isfinite(numbers.sum())) or bool(torch.isfinite(numbers).all())
