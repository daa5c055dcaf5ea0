"""The part on found curves: how many wrong labels come to light by looking."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from tracin.analysis import FoundComparison, FoundCurve
from tracin.report.card import isolated, label_text
from tracin.report.chart import Chart, Line, chart
from tracin.report.numbers import percent

STYLES = 6  # lines that the style sheet tells apart
SHARES = (0.3, 0.5, 1.0)  # where the chart may end
HIGH = 0.9  # a curve that is this high has shown what it can
LOOKED_AT = (0.05, 0.1, 0.2, 0.3)


@final
@dataclass(frozen=True, eq=False)
class FoundRanking:
    """How much one ranking finds.

    Attributes:
        name: Of the ranking.
        inspected: Shares of the examples looked at, from 0 to 1: [points].
        found: Shares of the wrong labels found: [points].
        auroc: How often a wrong label stands above a right one; None where it is unknown.
        wrong: The share of labels that are wrong; None where it is unknown.
    """

    name: str
    inspected: np.ndarray
    found: np.ndarray
    auroc: float | None = None
    wrong: float | None = None

    def at(self, share: float) -> float:
        """The share found after looking at a share of the examples."""
        return float(np.interp(share, self.inspected, self.found))


@final
@dataclass(frozen=True)
class FoundSection:
    """The whole part."""

    template = "found.html"
    title = "How much is found by looking?"
    short_title = "How much is found"
    key: str
    say: str
    chart: Chart
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    left_out: tuple[str, ...]
    facts: tuple[tuple[str, str], ...] = ()


def rankings_of(result: FoundCurve | FoundComparison) -> list[FoundRanking]:
    """Found curves as the page draws them; of several seeds the mean."""
    curves = {"this ranking": (result,)} if isinstance(result, FoundCurve) else result.curves
    rankings = []
    for name, each in curves.items():
        mean = np.mean([one.curve.cpu().numpy() for one in each], axis=0)
        auroc = float(np.mean([one.auroc for one in each]))
        wrong = float(np.mean([one.wrong / one.examples for one in each]))
        rankings.append(FoundRanking(name, np.linspace(0, 1, len(mean)), mean, auroc, wrong))
    return rankings


def found_section(rankings: Sequence[FoundRanking], key: str) -> FoundSection:
    """Make the part on what some rankings find."""
    shown = rankings[:STYLES]
    end = next(
        share for share in SHARES if share == 1 or max(each.at(share) for each in shown) >= HIGH
    )
    lines = [
        Line(label_text(each.name), each.inspected, each.found, f"s{at}")
        for at, each in enumerate(shown)
    ]
    ends = np.array([0.0, end])
    lines.append(Line("random order", ends, ends, "ref"))
    wrong = shown[0].wrong
    if wrong is not None:
        bend = np.array([0.0, min(wrong, end), end])
        lines.append(Line("best possible", bend, np.minimum(bend / wrong, 1.0), "ref"))
    drawn = chart(
        "Share of the wrong labels found",
        lines,
        (0.0, end),
        (0.0, 1.0),
        x_label="share of the training examples looked at",
        x_text=percent,
        y_text=percent,
    )
    rows = tuple(
        (
            label_text(each.name),
            (
                *(percent(each.at(share)) for share in LOOKED_AT),
                "" if each.auroc is None else f"{each.auroc:.3f}",
            ),
        )
        for each in rankings
    )
    best = max(shown, key=lambda each: each.at(LOOKED_AT[1]))
    name, some, more = isolated(label_text(best.name)), LOOKED_AT[1], LOOKED_AT[2]
    say = (
        f"Look through the first {percent(some)} of the ranking by {name}: it holds "
        f"{percent(best.at(some))} of the labels known to be wrong, where as many examples in "
        f"random order would hold {percent(some)}. The first {percent(more)} holds "
        f"{percent(best.at(more))}."
    )
    left_out = ()
    if len(rankings) > len(shown):
        left_out = (f"{len(shown)} of {len(rankings)} curves are drawn; the table has all",)
    heads = (*(f"first {percent(share)}" for share in LOOKED_AT), "AUROC")
    return FoundSection(key, say, drawn, heads, rows, left_out)
