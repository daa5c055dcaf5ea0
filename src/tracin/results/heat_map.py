"""A text whose tokens are coloured by a number each, as HTML without script or style sheet."""

from collections.abc import Sequence
from html import escape

from tracin.plain_text import plain
from tracin.results.table import cell

# The blue and the red of a report: most colour-blind people tell them apart.
POSITIVE, NEGATIVE = "11,107,203", "179,38,30"
FAINTEST = 0.02  # of the largest share: what is not coloured


def heat_map(tokens: Sequence[str], shares: Sequence[float]) -> str:
    """The tokens one after the other, blue where they add to the score, red where they take.

    Args:
        tokens: [positions].
        shares: [positions]; the largest, of either sign, has the full colour.

    Example:
        >>> print(heat_map(["a", "<b>"], [0.0, 2.0]).count("&lt;b&gt;"))
        1
    """
    depths = strengths(shares)
    return "".join(map(_span, tokens, shares, depths))


def strengths(shares: Sequence[float]) -> list[float]:
    """Each share by the largest of either sign: from -1 to 1, 0 for what is not coloured.

    Example:
        >>> strengths([0.0, 4.0, -2.0, 0.01])
        [0.0, 1.0, -0.5, 0.0]
    """
    largest = max(map(abs, shares), default=0.0) or 1.0
    depths = [share / largest for share in shares]
    return [depth if abs(depth) >= FAINTEST else 0.0 for depth in depths]


def _span(token: str, share: float, depth: float) -> str:
    text = escape(plain(token))
    # Tokens stand a little apart: many tokenizers name them without the space before them.
    spaced = "white-space:pre-wrap;padding:1px 2px;margin:0 1px"
    colour = POSITIVE if depth > 0 else NEGATIVE
    shade = f";background:rgba({colour},{0.5 * abs(depth):.2f})" if depth else ""
    return f'<span style="{spaced}{shade}" title="{escape(cell(share))}">{text}</span>'
