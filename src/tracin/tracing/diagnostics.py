"""Whether to trust a trace: predicted against real loss changes (Remark 3.3, Lemma 3.1)."""

import os
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from tracin.errors import QueryError
from tracin.printed import Printed
from tracin.results.table import aligned
from tracin.statistics import pearson
from tracin.tracing.paths import Quadrature
from tracin.tracing.step_table import PARTS, Steps

# When a trace can be trusted: its sums are right within a tenth, its steps follow the real ones.
MAGNITUDE_TOLERANCE = 0.1
MIN_CORRELATION = 0.9
# The gap of Lemma 3.1 that rounding of float32 losses explains, and the share of a prediction above
# which the verdict says that it belongs to no example.
LEMMA_TOLERANCE = 1e-3
NOTICED = 0.01


@final
@dataclass(frozen=True, eq=False, repr=False)
class TraceDiagnostics(Printed):
    """Predicted against real loss drops, per step and query; printing it gives a verdict.

    The prediction of a step is the sum of its examples' scores, weight decay, momentum, and what
    is attributed to no example. By Lemma 3.1 the real drops add up to the whole loss drop of a
    query over the traced steps; where the predictions do not, scores still rank examples, but
    their magnitudes mislead, however well single steps agree.

    Attributes:
        path: Whose predictions are judged.
        steps: All traced steps.
        predicted: [steps, queries].
        actual: [steps, queries].
        is_partial: Whether some of the trained parameters were left out (`parameters=`).
    """

    path: Quadrature
    steps: Steps
    predicted: np.ndarray
    actual: np.ndarray
    is_partial: bool = False

    @property
    def pearson(self) -> float:
        """Correlation over all steps and queries together (the paper's Figure 7)."""
        return _correlation(self.predicted, self.actual)

    @property
    def slope(self) -> float:
        """Of the least-squares line from predicted to actual, through all steps and queries."""
        centred = self.predicted - self.predicted.mean()
        squares = float((centred**2).sum())
        return float((centred * self.actual).sum()) / squares if squares else float("nan")

    @property
    def conservation_ratio(self) -> float:
        """The sum of all predictions over the sum of all real drops; 1 where amounts are right."""
        real = float(self.actual.sum())
        return float(self.predicted.sum()) / real if real else float("nan")

    @property
    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Each query's predicted and real drop over all traced steps: [queries] both."""
        return self.predicted.sum(0), self.actual.sum(0)

    @property
    def pearson_of_totals(self) -> float:
        """Correlation of the queries' totals."""
        return _correlation(*self.totals)

    @property
    def residuals(self) -> np.ndarray:
        """The root mean square gap of each step: [steps]."""
        return np.sqrt(((self.predicted - self.actual) ** 2).mean(1))

    @property
    def lemma_gap(self) -> float:
        """How far the real drops are from the whole drop over an unbroken trace, relative to it.

        Lemma 3.1: zero but for rounding, where every step was traced.
        """
        whole = self.steps.before[0] - self.steps.after[-1]
        size = float(np.abs(whole).sum())
        gap = float(np.abs(self.actual.sum(0) - whole).sum())
        return gap / size if size else gap

    @property
    def is_unbroken(self) -> bool:
        """Whether every step from the first traced to the last was traced."""
        return bool((np.diff(self.steps.step) == 1).all())

    @property
    def magnitudes_reliable(self) -> bool:
        """Whether predictions add up to the real loss drop, within a tenth."""
        return abs(self.conservation_ratio - 1) <= MAGNITUDE_TOLERANCE

    @property
    def correlates(self) -> bool:
        """Whether predicted and real drops of single steps correlate by 0.9 or more."""
        return self.pearson >= MIN_CORRELATION

    @property
    def verdict(self) -> str:
        """Whether rankings, magnitudes, both or neither can be trusted, in words."""
        if not self.actual.any():
            return (
                "Cannot judge these scores: no loss changed in any traced step. Is the learning "
                "rate 0?"
            )
        if self.is_unbroken and self.lemma_gap > LEMMA_TOLERANCE:
            return (
                f"Do not trust these scores: the real drops of steps add up to the whole but for "
                f"{self.lemma_gap:.1e} of it (Lemma 3.1). Something other than the traced steps "
                "changed the losses: a query loss that is random, or weights that another "
                "optimizer moved."
            )
        if not self.correlates:
            return (
                f"Do not trust these scores: predicted and real steps correlate by "
                f"{self.pearson:.2f} only. "
                + (
                    "Parameters that were not traced move the losses, too."
                    if self.is_partial
                    else "Steps are too large for their gradients to tell what they do: a smaller "
                    "learning rate, a finer path (tracin.tracing.Quadrature.SIMPSON), or a model "
                    "without dropout and batch statistics would show it."
                )
            )
        if not self.magnitudes_reliable:
            return (
                "Trust rankings, but not magnitudes: scores add up to "
                f"{self.conservation_ratio:.2f} x the real loss drop, though single steps "
                f"correlate by {self.pearson:.3f}."
                + (
                    " tracin.tracing.Quadrature.TRAPEZOID fixes that at no cost."
                    if self.path is Quadrature.FIRST_ORDER and not self.is_partial
                    else " The parameters that were not traced have their part in the real drop."
                    if self.is_partial
                    else " Most likely the steps are large; see residuals by step."
                )
            )
        others = [part for part, value in self.parts().items() if part != "examples" and value]
        whole = sum(abs(value) for value in self.parts().values())
        unattributed = sum(abs(self.parts()[part]) for part in others)
        if unattributed > NOTICED * whole:
            return (
                "Trust rankings and magnitudes: together with "
                f"{' and '.join(others)}, which belong to no example, scores add up to the real "
                "loss drop."
            )
        return "Trust rankings and magnitudes: scores add up to the real loss drop."

    def parts(self) -> dict[str, float]:
        """The sum over steps and queries of each part of the prediction."""
        sums = {part: float(self.steps.part(self.path, part).sum()) for part in PARTS}
        return sums | {"running statistics": float(self.steps.buffers.sum())}

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Predicted against real drops, as the paper's Figure 7; with `path`, into a file.

        Returns:
            The matplotlib figure.

        Raises:
            QueryError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise QueryError(
                "The plot is drawn by matplotlib, which is not installed: pip install matplotlib."
            ) from error
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        ends = [float(f(v)) for f, v in ((np.min, self.actual), (np.max, self.actual))]
        left.plot(ends, ends, color="0.7", linewidth=1)
        left.scatter(self.predicted.ravel(), self.actual.ravel(), s=2, rasterized=True)
        left.set_xlabel("predicted loss drop of a step")
        left.set_ylabel("real loss drop")
        left.set_title(f"Pearson {self.pearson:.3f}, slope {self.slope:.2f}")
        right.plot(self.steps.step, np.cumsum(self.actual.sum(1)), label="real")
        right.plot(
            self.steps.step, np.cumsum(self.predicted.sum(1)), label="predicted", dashes=[4, 2]
        )
        right.set_xlabel("step")
        right.set_ylabel("loss drop so far, all queries")
        right.set_title(f"conservation ratio {self.conservation_ratio:.2f}")
        right.legend(frameon=False)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def __str__(self) -> str:
        steps, queries = self.predicted.shape
        rows: list[tuple[object, ...]] = [
            ("Pearson, all steps and queries", f"{self.pearson:.4f}"),
            ("slope, real over predicted", f"{self.slope:.3f}"),
            ("conservation ratio", f"{self.conservation_ratio:.4f}"),
            ("Pearson of the queries' totals", f"{self.pearson_of_totals:.4f}"),
            ("real loss drop, all queries", f"{self.actual.sum():.4f}"),
            *(
                (f"predicted: {part}", f"{value:.4f}")
                for part, value in self.parts().items()
                if value or part == "examples"
            ),
        ]
        if self.is_unbroken:
            rows.append(("Lemma 3.1, relative gap", f"{self.lemma_gap:.1e}"))
        head = (f"{self.path.value}, {steps} steps, {queries} queries", "")
        return f"{aligned(head, rows)}\n{self.verdict}"


def goodness_of(steps: Steps, path: Quadrature, *, is_partial: bool = False) -> TraceDiagnostics:
    """Judge the steps of a trace.

    Raises:
        QueryError: No step was traced, or without queries.
    """
    if steps.queries == 0:
        raise QueryError("Without queries only self-influence was traced; give some to the Tracer.")
    if len(steps) == 0:
        raise QueryError("No step was traced yet, so there is nothing to judge.")
    return TraceDiagnostics(path, steps, steps.predicted(path), steps.actual, is_partial)


def _correlation(predicted: np.ndarray, actual: np.ndarray) -> float:
    # Copies: a slice of a table on the disk is read-only, which torch warns of.
    return float(pearson(torch.tensor(predicted).flatten(), torch.tensor(actual).flatten()))
