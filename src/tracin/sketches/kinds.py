"""The ways in which one parameter's gradients become columns."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Written:
    """Every number is kept, from this column on."""

    start: int


@final
@dataclass(frozen=True)
class Hashed:
    """Written out, signed and added up into the columns of a block."""

    block: int


@final
@dataclass(frozen=True)
class TwoSided:
    """A wide matrix: both sides projected, left^T G right, then hashed into a block.

    Attributes:
        block: The block's number.
        left: Numbers to which the output side is projected; as many as it has for none.
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
    """Few positions: the convolution of the factors' count-sketches is one of their product.

    The TensorSketch of Pham and Pagh (2013): in + out numbers are read in place of in x out. The
    column of an entry is the sum of its row's and its column's, so its variance is larger than
    that of `Hashed`, yet far below that of two-sided projections kept in as many columns.
    """

    block: int
    shape: tuple[int, int]


@final
@dataclass(frozen=True)
class Factored:
    """One position: the two factors are kept, each in columns of its own, in a product block."""

    block: int


@final
@dataclass(frozen=True)
class Beside:
    """A bias whose gradient is its weight's left factor: there is nothing more to keep."""

    weight: str


SketchKind = Written | Hashed | TwoSided | Convolved | Factored | Beside
"""How a parameter's gradients become columns."""

KINDS: dict[str, type[SketchKind]] = {
    "written": Written,
    "hashed": Hashed,
    "two-sided": TwoSided,
    "convolved": Convolved,
    "factored": Factored,
    "beside": Beside,
}
"""The names of the ways in a manifest."""
