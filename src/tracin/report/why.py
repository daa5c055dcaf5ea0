"""The part on explanations: each query with its proponents and opponents side by side."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from tracin.plain_text import many
from tracin.report.bars import Bars, bars, summed_neighbours
from tracin.report.card import Card, card_of, isolated, label_text
from tracin.report.judged import Judged, judged, judged_by_facts
from tracin.report.limits import PageLimits
from tracin.report.numbers import readable
from tracin.report.seen import Seen
from tracin.results.explanations import Explanation, Explanations, Influence, TopInfluences
from tracin.results.shown import one_line
from tracin.results.suspects import Suspects

NAMED = 5  # ids in a sentence
LISTED = 4  # checkpoints by name


@final
@dataclass(frozen=True)
class HitView:
    """One proponent or opponent.

    Attributes:
        card: The example.
        score: With its sign.
        is_positive: Whether it lowered the query's loss.
        error: One standard deviation of the score, where it is an estimate.
        suggested: The label that the model finds likelier than the given one; None where it
            agrees, or that is unknown.
        loss: The example's loss, where it is known.
        bars: The score by checkpoint.
        is_last_certain: Whether others may belong below this one.
    """

    card: Card
    score: str
    is_positive: bool
    error: str | None
    suggested: str | None
    loss: str | None
    bars: Bars
    is_last_certain: bool = False


@final
@dataclass(frozen=True)
class QueryView:
    """One query.

    Attributes:
        id: Its id.
        card: The example.
        say: What to do, in words.
        is_warning: Whether labels among the opponents are likely the cause.
        sides: (title, its hits) of both sides.
    """

    id: str
    card: Card
    say: str
    is_warning: bool
    sides: tuple[tuple[str, tuple[HitView, ...]], ...]


@final
@dataclass(frozen=True)
class WhySection:
    """The whole part."""

    template = "why.html"
    title = "Why did the model say this?"
    short_title = "Why"
    key: str
    queries: tuple[QueryView, ...]
    checkpoints: str
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def why_section(
    explanations: Explanations, key: str, seen: Seen, suspects: Suspects | None, limits: PageLimits
) -> WhySection:
    """Make the part on some explanations.

    Args:
        explanations: The explanations.
        key: What the page calls the part in links.
        seen: The examples, as a person sees them.
        suspects: A ranking of the same training data, for labels and losses; None for none.
        limits: How much to show.
    """
    k = explanations.proponents.ids.shape[1]
    queries, hits = min(len(explanations), limits.queries), min(k, limits.hits)
    shown = [explanations[at] for at in range(queries)]
    found = [one for each in shown for one in _all(each, hits)]
    seen.fetch((one.position for one in found), (one.id for one in found))
    # A ranking has probabilities, which say more than which class has the highest score.
    known = judged_by_facts(found) | judged(suspects, (one.position for one in found))
    cards = seen.queries(explanations.query_ids[:queries].tolist())
    sure = [
        [_sure(side, at, hits) for side in (explanations.proponents, explanations.opponents)]
        for at in range(queries)
    ]
    views = [
        _query(one, card, hits, seen, known, ends, limits.side, explanations.target)
        for one, card, ends in zip(shown, cards, sure, strict=True)
    ]
    left_out = []
    if queries < len(explanations):
        left_out.append(f"{queries} of {many(len(explanations), 'query')} are shown")
    if hits < k:
        left_out.append(f"{hits} of {k} proponents and opponents of each query are shown")
    groups = len(summed_neighbours([0.0] * len(explanations.checkpoints)))
    names = _from_to(explanations.checkpoints)
    if groups < len(explanations.checkpoints):
        names += f", neighbours added up to {groups} bars"
    return WhySection(
        key, tuple(views), names, _notes(explanations), tuple(left_out), _facts(explanations)
    )


def _from_to(checkpoints: Sequence[str]) -> str:
    names = list(map(label_text, checkpoints))
    if len(names) <= LISTED:
        return ", ".join(names)
    return f"{names[0]} to {names[-1]}, {len(names)} of them"


def _facts(explanations: Explanations) -> tuple[tuple[str, str], ...]:
    is_estimate = explanations.proponents.errors is not None
    return (
        ("queries", f"{len(explanations):,}"),
        ("checkpoints", f"{len(explanations.checkpoints):,}"),
        ("scores", "estimated, with one standard deviation" if is_estimate else "exact"),
    )


def _notes(explanations: Explanations) -> tuple[str, ...]:
    notes = [] if explanations.recall is None else [str(explanations.recall)]
    return tuple(one_line(str(each)) for each in [*notes, *explanations.notes])


def _all(explanation: Explanation, hits: int) -> list[Influence]:
    return [*explanation.proponents[:hits], *explanation.opponents[:hits]]


def _sure(side: TopInfluences, query: int, hits: int) -> int | None:
    """How many of the first results are certain; None where that is unknown, or all are."""
    if side.sure is None:
        return None
    certain = [bool(each) for each in side.sure[query][:hits]]
    return None if all(certain) else certain.index(False)


def _query(
    explanation: Explanation,
    query: Card | None,
    hits: int,
    seen: Seen,
    known: dict[int, Judged],
    sure: Sequence[int | None],
    side: int,
    target: str | None,
) -> QueryView:
    sides = [explanation.proponents[:hits], explanation.opponents[:hits]]
    shares = [[summed_neighbours(one.by_checkpoint) for one in each] for each in sides]
    sizes = [abs(v) for each in shares for one in each for v in one if math.isfinite(v)]
    largest = max(sizes, default=0.0)
    id_ = label_text(explanation.id)
    card = query or card_of(None, f"query {id_}", side)
    views = [
        tuple(
            _hit(one, share, largest, seen, known.get(one.position), at + 1 == end)
            for at, (one, share) in enumerate(zip(each, its, strict=True))
        )
        for each, its, end in zip(sides, shares, sure, strict=True)
    ]
    say, is_warning = _say(card, sides, views, known, target)
    is_onesided = bool(sides[1]) and all(one.score >= 0 for one in sides[1])
    if target is None:
        titles = (
            "Proponents: learning these lowered its loss",
            f"Opponents: these {'lowered its loss least' if is_onesided else 'raised its loss'}",
        )
    else:
        titles = (
            f"Proponents: learning these raised {one_line(target)}",
            f"Opponents: these {'raised it least' if is_onesided else 'lowered it'}",
        )
    return QueryView(id_, card, say, is_warning, tuple(zip(titles, views, strict=True)))


def _hit(
    one: Influence,
    shares: Sequence[float],
    largest: float,
    seen: Seen,
    judgement: Judged | None,
    is_last_certain: bool,
) -> HitView:
    card = seen.train(one.position, one.id)
    suggested = loss = None
    if judgement is not None:
        given, other = seen.label(judgement.given), seen.label(judgement.suggested)
        card = card if card.label is not None else _labelled(card, given)
        suggested = other if judgement.disagrees else None
        loss = None if judgement.loss is None else readable(judgement.loss)
    sign = "+" if one.score > 0 else ""
    error = readable(one.error) if one.error else None
    drawn = bars(shares, largest)
    return HitView(
        card, sign + readable(one.score), one.score >= 0, error, suggested, loss, drawn,
        is_last_certain,
    )  # fmt: skip


def _labelled(card: Card, label: str) -> Card:
    return replace(card, label=label)


def _say(
    query: Card,
    sides: Sequence[Sequence[Influence]],
    views: Sequence[Sequence[HitView]],
    known: dict[int, Judged],
    target: str | None,
) -> tuple[str, bool]:
    """What to do, in words, and whether it is a warning."""
    pairs = list(zip(sides[1], views[1], strict=True))
    against = [(one, view) for one, view in pairs if one.score < 0]
    # Two numbers are hardly ever equal, and the model hits none of them.
    are_numbers = any(judgement.disagrees is None for judgement in known.values())
    labels = "" if are_numbers else _labels(query, views, [view for _, view in against])
    if not against:
        none = "raised this loss" if target is None else f"lowered {one_line(target)}"
        return f"No training example {none}.{labels}", False
    if target is not None:
        say = f"Learning {_ids([one for one, _ in against])} lowered {one_line(target)} most."
        return say + labels, False
    doubted = [one for one, view in against if view.suggested is not None]
    strongest = f"the {many(len(against), 'strongest opponent')}"
    if doubted:
        say = (
            f"Look at the labels of {_ids(doubted)} first: of {strongest}, the model itself doubts "
            f"the labels of {'all' if len(doubted) == len(against) else len(doubted)}. Mend those "
            "that are wrong, and train again."
        )
        return say + labels, len(doubted) >= len(against) / 2
    if not are_numbers and any(one.position in known for one, _ in against):
        say = (
            f"The model agrees with the labels of {strongest}, so wrong labels are not the likely "
            f"cause. Look at {_ids([one for one, _ in against])}: what have they in common with "
            "this query that their label contradicts?"
        )
        return say + labels, False
    has_labels = any(view.card.label is not None for _, view in against)
    say = (
        f"Look at {_ids([one for one, _ in against])} first: learning them raised this loss most. "
        f"Mend {'labels' if has_labels else 'those'} that are wrong, and train again."
    )
    return say + labels, False


def _labels(query: Card, views: Sequence[Sequence[HitView]], against: Sequence[HitView]) -> str:
    """How many proponents share the query's label, and which label leads among the opponents."""
    proponents = [view.card.label for view in views[0] if view.is_positive]
    opponents = Counter(view.card.label for view in against if view.card.label is not None)
    if query.label is None or None in proponents or not proponents:
        return ""
    same = sum(label == query.label for label in proponents)
    own = isolated(query.label)
    text = f" {same} of {many(len(proponents), 'proponent')} are labelled {own}, as it is"
    if opponents:
        (label, count), *_ = opponents.most_common(1)
        text += f"; {count} of {many(len(against), 'opponent')} are labelled {isolated(label)}"
    return f"{text}."


def _ids(hits: Sequence[Influence]) -> str:
    names = [isolated(label_text(one.id)) for one in hits[:NAMED]]
    listed = ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
    more = f" (and {len(hits) - NAMED} more)" if len(hits) > NAMED else ""
    return f"{'example' if len(hits) == 1 else 'examples'} {listed}{more}"
