"""Captioned images, side by side, for any terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

SHADES = " .:-=+*#%@"
GAP = "   "


@dataclass(frozen=True, eq=False)
class Picture:
    """An image and what to say below it.

    Attributes:
        image: [height, width], from 0 to 1.
        caption: Short lines.
        is_marked: Whether to frame it where there is colour: its label is wrong.
    """

    image: Tensor
    caption: tuple[str, ...]
    is_marked: bool = False


def side_by_side(pictures: Sequence[Picture], indent: str = "  ") -> str:
    """The pictures in a row, drawn in characters, with their captions below."""
    blocks = [_drawn(picture) for picture in pictures]
    height = max(len(block) for block in blocks)
    lines = []
    for line in range(height):
        parts = [block[line] if line < len(block) else " " * len(block[0]) for block in blocks]
        lines.append((indent + GAP.join(parts)).rstrip())
    return "\n".join(lines)


def a_digit(digit: int) -> str:
    """A digit with its article."""
    return f"an {digit}" if digit == 8 else f"a {digit}"


def _drawn(picture: Picture) -> list[str]:
    # A character is about twice as high as wide, so each pixel takes two.
    levels = (picture.image.clamp(0, 1) * (len(SHADES) - 1)).round().int().tolist()
    rows = ["".join(2 * SHADES[level] for level in row) for row in levels]
    width = max(len(rows[0]), *(len(line) for line in picture.caption))
    return [row.center(width) for row in rows] + [line.center(width) for line in picture.caption]
