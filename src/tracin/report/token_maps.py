"""The part on shares of tokens: both texts of each pair as heat maps."""

from dataclasses import dataclass
from typing import final

from tracin.plain_text import many
from tracin.report.card import label_text
from tracin.report.limits import PageLimits
from tracin.report.numbers import readable
from tracin.results.heat_map import strengths
from tracin.results.shown import one_line
from tracin.results.token_shares import PairTokens, TextShares, TokenShares

DEPTHS = 5  # shades of each colour
TOKENS = 1000  # of a text
LONGEST = 60  # characters of a token
NAMED = 3  # tokens in words


@final
@dataclass(frozen=True)
class TokenView:
    """One token.

    Attributes:
        text: As it is read.
        share: With its sign.
        shade: Its class in the style sheet; "" for no colour.
    """

    text: str
    share: str
    shade: str


@final
@dataclass(frozen=True)
class TextView:
    """One text.

    Attributes:
        name: Which of the two it is.
        say: Its strongest tokens in words, for who does not see colours.
        tokens: Those that are shown.
        hidden: How many are not.
    """

    name: str
    say: str
    tokens: tuple[TokenView, ...]
    hidden: int


@final
@dataclass(frozen=True)
class PairView:
    """One query with one training example."""

    query: str
    example: str
    score: str
    is_positive: bool
    texts: tuple[TextView, ...]


@final
@dataclass(frozen=True)
class TokensSection:
    """The whole part."""

    template = "tokens.html"
    title = "Which tokens carry the scores?"
    short_title = "Tokens"
    key: str
    pairs: tuple[PairView, ...]
    left_out: tuple[str, ...]
    facts: tuple[tuple[str, str], ...] = ()


def tokens_section(shares: TokenShares, key: str, limits: PageLimits) -> TokensSection:
    """Make the part on shares of tokens.

    Args:
        shares: The shares.
        key: What the page calls the part in links.
        limits: How many pairs to show: as many as queries.
    """
    shown = shares.pairs[: limits.queries]
    left_out = []
    if len(shown) < len(shares):
        left_out.append(f"{len(shown)} of {many(len(shares), 'pair')} are shown")
    return TokensSection(key, tuple(map(_pair, shown)), tuple(left_out))


def _pair(pair: PairTokens) -> PairView:
    return PairView(
        label_text(pair.query_id),
        label_text(pair.id),
        readable(pair.score),
        pair.score >= 0,
        (_text("Query", pair.query), _text("Training example", pair.train)),
    )


def _text(name: str, side: TextShares) -> TextView:
    names, shares = side.named(), side.shares.tolist()
    strongest = [f"{_token(names[at])} {readable(shares[at])}" for at in side.strongest(NAMED)]
    views = [
        TokenView(_token(token), readable(share), _shade(depth))
        for token, share, depth in zip(names, shares, strengths(shares), strict=True)
    ][:TOKENS]
    say = f"strongest: {', '.join(strongest)}" if strongest else "no token has a share"
    return TextView(name, say, tuple(views), len(names) - len(views))


def _token(token: str) -> str:
    return one_line(token, LONGEST) or "⏎" * bool(token)


def _shade(depth: float) -> str:
    level = min(DEPTHS, int(abs(depth) * DEPTHS) + 1)
    return "" if not depth else f"{'u' if depth > 0 else 'd'}{level}"
