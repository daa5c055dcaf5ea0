"""The part on suspects: which labels may be wrong, and which are taken for which."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from tracin.plain_text import many
from tracin.report.card import Card, isolated, label_text
from tracin.report.judged import are_classes, disagreements
from tracin.report.limits import PageLimits
from tracin.report.numbers import MINUS, percent, readable
from tracin.report.seen import Seen
from tracin.results.suspects import Suspects

# The columns that matter most, where a ranking has them; others would not fit.
FIRST = (
    "loss_and_margin", "residual", "loss", "margin", "self_influence", "el2n",
    "self_influence_last", "aum",
)  # fmt: skip
COLUMNS = 5
PROBABILITIES = ("given_probability", "suggested_probability")
CONFUSIONS = 10
NAMED = 3  # ids in a sentence


@final
@dataclass(frozen=True)
class SuspectView:
    """One row.

    Attributes:
        rank: From 1, the most suspicious.
        card: The example.
        id: Its id.
        given: Its label in the data.
        suggested: The label that the model would give in its place.
        disagrees: Whether the model finds the suggested label likelier.
        chances: How likely the model finds both, where that is known.
        values: (number, text) of each column.
    """

    rank: int
    card: Card
    id: str
    given: str
    suggested: str
    disagrees: bool
    chances: tuple[str, str] | None
    values: tuple[tuple[float, str], ...]


@final
@dataclass(frozen=True)
class Confusion:
    """How often the model would rather give one label than another."""

    given: str
    suggested: str
    count: int


@final
@dataclass(frozen=True)
class SuspectsSection:
    """The whole part."""

    template = "suspects.html"
    title = "Which labels are wrong?"
    short_title = "Wrong labels"
    key: str
    say: str
    caption: str
    has_classes: bool
    columns: tuple[str, ...]
    ranked_by: str
    rows: tuple[SuspectView, ...]
    labels: tuple[str, ...]
    confusions: tuple[Confusion, ...]
    left_out: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def suspects_section(
    suspects: Suspects, key: str, seen: Seen, limits: PageLimits
) -> SuspectsSection:
    """Make the part on a ranking of suspects.

    Args:
        suspects: The ranking, most suspicious first.
        key: What the page calls the part in links.
        seen: The examples, as a person sees them.
        limits: How much to show.
    """
    count = min(len(suspects), limits.suspects)
    seen.fetch(suspects.positions[:count], suspects.ids[:count])
    names = _columns(suspects)
    disagrees = disagreements(suspects)
    has_classes = are_classes(suspects)
    rows = tuple(_row(suspects, at, names, bool(disagrees[at]), seen) for at in range(count))
    left_out = ()
    if count < len(suspects):
        left_out = (f"{count:,} of {len(suspects):,} suspects are shown",)
    caption = f"The most suspicious of {many(len(suspects), 'example')} first"
    return SuspectsSection(
        key=key,
        say=_say(suspects, disagrees, seen, has_classes),
        caption=f"{caption}, by {words(suspects.ranked_by)}.",
        has_classes=has_classes,
        columns=tuple(words(name) for name in names),
        ranked_by=words(suspects.ranked_by),
        rows=rows,
        labels=tuple(_in_order({row.given for row in rows})) if has_classes else (),
        confusions=_confusions(suspects, disagrees, seen),
        left_out=left_out,
        facts=(("training examples", f"{len(suspects):,}"),),
    )


def words(name: str) -> str:
    """A column's name as it is read.

    Example:
        >>> words("self_influence_last")
        'self-influence, last layer'
    """
    spelled = {
        "self_influence": "self-influence",
        "self_influence_last": "self-influence, last layer",
        "el2n": "EL2N",
        "aum": "AUM",
        "residual": f"target {MINUS} prediction",
    }
    return spelled.get(name, name.replace("_", " "))


def _columns(suspects: Suspects) -> list[str]:
    names = [name for name in suspects.scores if name not in PROBABILITIES]
    led = [suspects.ranked_by] if suspects.ranked_by in suspects.scores else []
    wanted = [*led, *(name for name in FIRST if name in names), *names]
    return list(dict.fromkeys(wanted))[:COLUMNS]


def _row(
    suspects: Suspects, at: int, names: Sequence[str], disagrees: bool, seen: Seen
) -> SuspectView:
    scores = suspects.scores
    values = [float(scores[name][at]) for name in names]
    chances = None
    if all(name in scores for name in PROBABILITIES):
        given, suggested = (percent(float(scores[name][at])) for name in PROBABILITIES)
        chances = (given, suggested)
    return SuspectView(
        rank=at + 1,
        card=seen.train(int(suspects.positions[at]), suspects.ids[at]),
        id=label_text(suspects.ids[at]),
        given=seen.label(suspects.given_labels[at]),
        suggested=seen.label(suspects.suggested_labels[at]),
        disagrees=disagrees,
        chances=chances,
        values=tuple((value, readable(value)) for value in values),
    )


def _say(suspects: Suspects, disagrees: np.ndarray, seen: Seen, has_classes: bool) -> str:
    if not len(suspects):
        return "There are no suspects: the table is empty."
    first = ", ".join(isolated(label_text(each)) for each in suspects.ids[:NAMED])
    start = f"Look at the rows from the top (ids {first}, ...) and decide about each."
    if not has_classes:
        given = isolated(seen.label(suspects.given_labels[0]))
        predicted = isolated(seen.label(suspects.suggested_labels[0]))
        return (
            f"{start} The first has the target {given}, and the model predicts {predicted}. A gap "
            "alone does not make a target wrong."
        )
    count = int(disagrees.sum())
    if not count:
        return (
            f"{start} The model finds no label likelier than the given one: it learnt all of them, "
            "wrong ones too, so earlier checkpoints may tell more."
        )
    return (
        f"{start} For {count:,} of {many(len(suspects), 'example')} "
        f"({percent(count / len(suspects))}) the model finds another label likelier than the given "
        "one. That alone does not make it wrong."
    )


def _confusions(suspects: Suspects, disagrees: np.ndarray, seen: Seen) -> tuple[Confusion, ...]:
    pairs = zip(
        suspects.given_labels[disagrees].tolist(),
        suspects.suggested_labels[disagrees].tolist(),
        strict=True,
    )
    return tuple(
        Confusion(seen.label(given), seen.label(suggested), count)
        for (given, suggested), count in Counter(pairs).most_common(CONFUSIONS)
    )


def _in_order(labels: set[str]) -> list[str]:
    """Numbers by size, then texts by letter."""
    return sorted(labels, key=lambda each: (not each.isdigit(), each.zfill(20), each))
