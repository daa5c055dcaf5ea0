"""The part on a trace's diagnostics: do predicted loss changes follow the real ones?"""

from dataclasses import dataclass
from typing import final

import numpy as np

from tracin.plain_text import many
from tracin.report.chart import BOTTOM, HEIGHT, TOP, WIDTH, Chart, Line, chart
from tracin.report.numbers import readable
from tracin.results.shown import one_line
from tracin.tracing import TraceDiagnostics

POINTS = 1500  # of the scatter; more are one cloud
LEFT, RIGHT = 52, 20


@final
@dataclass(frozen=True)
class TrustSection:
    """The whole part.

    Attributes:
        say: The verdict.
        is_warning: Whether the trace cannot be trusted in full.
        dots: The path, in SVG's language, of the scatter's points.
        diagonal: Where predicted and real are equal: (x, y) of both ends.
        dots_title: What the scatter shows.
        chart: The loss drop so far.
        rows: (name, figure).
    """

    template = "trust.html"
    title = "Can the trace be believed?"
    short_title = "Can it be believed"
    key: str
    say: str
    is_warning: bool
    dots: str
    diagonal: tuple[float, float, float, float]
    dots_title: str
    chart: Chart
    rows: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


def trust_section(diagnostics: TraceDiagnostics, key: str) -> TrustSection:
    """Make the part on a trace's diagnostics."""
    predicted, actual = diagnostics.predicted.ravel(), diagnostics.actual.ravel()
    keep = np.flatnonzero(np.isfinite(predicted) & np.isfinite(actual))
    picked = keep
    if len(keep) > POINTS:  # the same points each time, so that equal results make equal files
        picked = np.sort(np.random.default_rng(0).choice(keep, POINTS, replace=False))
    both = np.concatenate([predicted[picked], actual[picked]])
    low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    size = (high - low) or 1.0
    across = LEFT + (predicted[picked] - low) / size * (WIDTH - LEFT - RIGHT)
    upward = HEIGHT - BOTTOM - (actual[picked] - low) / size * (HEIGHT - BOTTOM - TOP)
    dots = "".join(f"M{x:.1f},{y:.1f}h0" for x, y in zip(across, upward, strict=True))
    shown = "" if len(picked) == len(predicted) else f", {len(picked):,} of {len(predicted):,}"
    return TrustSection(
        key=key,
        say=one_line(diagnostics.verdict, 1000),
        is_warning=not (diagnostics.magnitudes_reliable and diagnostics.correlates),
        dots=dots,
        diagonal=(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, TOP),
        dots_title=f"Predicted and real loss drop of steps{shown}",
        chart=_so_far(diagnostics),
        rows=_figures(diagnostics),
    )


def _so_far(diagnostics: TraceDiagnostics) -> Chart:
    steps = np.asarray(diagnostics.steps.step, dtype=float)
    real = np.nancumsum(diagnostics.actual.sum(1))
    predicted = np.nancumsum(diagnostics.predicted.sum(1))
    both = np.concatenate([real, predicted, [0.0]])
    return chart(
        "Loss drop so far, all queries",
        [Line("real", steps, real, "s0"), Line("predicted", steps, predicted, "s2")],
        (float(steps.min()), float(steps.max())),
        (float(both.min()), float(both.max())),
        x_label="step",
        x_text=lambda step: f"{step:,.0f}",
        y_text=readable,
    )


def _figures(diagnostics: TraceDiagnostics) -> tuple[tuple[str, str], ...]:
    steps, queries = diagnostics.predicted.shape
    return (
        ("traced", f"{many(steps, 'step')}, {many(queries, 'query')}, {diagnostics.path.value}"),
        ("Pearson, all steps and queries", readable(diagnostics.pearson)),
        ("slope, real over predicted", readable(diagnostics.slope)),
        ("conservation ratio", readable(diagnostics.conservation_ratio)),
        ("Pearson of the queries' totals", readable(diagnostics.pearson_of_totals)),
        ("real loss drop, all queries", readable(float(diagnostics.actual.sum()))),
    )
