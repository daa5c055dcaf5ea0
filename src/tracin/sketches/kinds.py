"""The kinds of sketches: how one parameter's gradients become columns."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Written:
    """Every number is kept, in the columns from `start` on."""

    start: int


@final
@dataclass(frozen=True)
class Hashed:
    """Written out, signed and added up in the columns of a block."""

    block: int


@final
@dataclass(frozen=True)
class TwoSided:
    """A wide matrix: both sides projected, left^T G right, then hashed into a block.

    Attributes:
        block: The block's number.
        left: The number of columns that the output side is projected to; its own number for no
            projection.
        right: The same for the input side.
        shape: The matrix's own sides, out and in.
    """

    block: int
    left: int
    right: int
    shape: tuple[int, int]


@final
@dataclass(frozen=True)
class Convolved:
    """Few positions: the convolution of the factors' count sketches is one of their product.

    This is the TensorSketch: it reads in + out numbers in place of in x out. The column of an entry
    is the sum of its row's and its column's, so its variance is larger than that of `Hashed`, yet
    far below that of two-sided projections to as many columns. N. Pham and R. Pagh, "Fast and
    scalable polynomial kernels via explicit feature maps", 2013,
    https://doi.org/10.1145/2487575.2487591.
    """

    block: int
    shape: tuple[int, int]


@final
@dataclass(frozen=True)
class Factored:
    """One position: both factors are kept, each in its own columns, in a product block."""

    block: int


@final
@dataclass(frozen=True)
class BiasOf:
    """A bias whose gradient is its weight's left factor: it needs no columns."""

    weight: str


SketchKind = Written | Hashed | TwoSided | Convolved | Factored | BiasOf
"""How a parameter's gradients become columns."""

KINDS: dict[str, type[SketchKind]] = {
    "written": Written,
    "hashed": Hashed,
    "two-sided": TwoSided,
    "convolved": Convolved,
    "factored": Factored,
    "bias": BiasOf,
}
"""Kinds by their names in a manifest."""
