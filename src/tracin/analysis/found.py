"""How many known wrong labels a ranking brings to light, by how much of it is inspected."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.analysis.arrays import cpu_tensor
from tracin.analysis.given_scores import given_scores
from tracin.analysis.plotting import as_percent, axes_for
from tracin.errors import DataError, QueryError
from tracin.results.table import aligned, numbers
from tracin.results.tabular import Tabular

INSPECTED = (0.05, 0.1, 0.2, 0.3)


@final
@dataclass(frozen=True, eq=False, repr=False)
class FoundCurve(Tabular):
    """What inspecting a ranking from its top finds (paper, section 4.1).

    Equal scores have no order, so every figure is its mean over all orders of the ties: the same
    on every machine, and 0.5 of AUROC for scores that are all the same.

    Attributes:
        found: The share of wrong examples found, by the share of examples inspected.
        curve: [examples + 1]; `curve[n]` is the share found after inspecting n examples.
        area: Area under `curve`, both axes from 0 to 1. Random ranking: 0.5. Perfect ranking: 1
            minus half the share of wrong examples.
        auroc: How often a wrong example stands above a right one.
        average_precision: The mean, over wrong examples, of the share of wrong ones among those
            inspected up to it.
        wrong: How many examples are wrong.
    """

    found: Mapping[float, float]
    curve: Tensor
    area: float
    auroc: float
    average_precision: float
    wrong: int

    @property
    def examples(self) -> int:
        """How many examples were ranked."""
        return len(self.curve) - 1

    def random(self) -> "FoundCurve":
        """What inspecting in a random order finds, on average over all orders."""
        return found_curve(torch.zeros(self.examples), self._first_wrong(), tuple(self.found))

    def best_possible(self) -> "FoundCurve":
        """What inspecting all wrong examples first finds."""
        is_wrong = self._first_wrong()
        return found_curve(is_wrong.double(), is_wrong, tuple(self.found))

    def columns(self) -> dict[str, np.ndarray]:
        """One row per number of examples inspected: the share of them, and the share found."""
        return {
            "inspected": np.linspace(0, 1, self.examples + 1),
            "found": numbers(self.curve),
        }

    def plot(self, ax: Any = None) -> Any:
        """Draw the curve, with random and best possible; returns the matplotlib axes.

        Args:
            ax: Axes to draw on; None for a new figure.

        Raises:
            QueryError: matplotlib is not installed.
        """
        axes = axes_for(ax)
        draw_limits(axes, self)
        axes.plot(self.columns()["inspected"], self.columns()["found"], label="found")
        axes.legend()
        return axes

    def __str__(self) -> str:
        rows = [figures(name, curve) for name, curve in self._rows().items()]
        head = f"{self.wrong} of {self.examples} examples are wrong; the share of them found"
        return f"{head}\n{aligned(headings(self), rows)}"

    def _rows(self) -> dict[str, "FoundCurve"]:
        return {
            "this ranking": self,
            "random": self.random(),
            "best possible": self.best_possible(),
        }

    def _first_wrong(self) -> Tensor:
        return torch.arange(self.examples) < self.wrong


def headings(curve: FoundCurve) -> list[str]:
    """The columns of a table of found curves."""
    shares = [f"at {100 * share:g} %" for share in curve.found]
    return ["ranking", *shares, "area", "AUROC", "average precision"]


def figures(name: str, curve: FoundCurve) -> list[Any]:
    """One row of a table of found curves."""
    return [name, *curve.found.values(), curve.area, curve.auroc, curve.average_precision]


def draw_limits(axes: Any, curve: FoundCurve) -> None:
    """Draw what a random order and the best possible one find, and name the axes."""
    share = curve.wrong / curve.examples
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="random")
    axes.plot([0, share, 1], [0, 1, 1], color="0.6", linestyle=":", label="best possible")
    axes.set_xlabel("examples inspected")
    axes.set_ylabel("wrong labels found")
    as_percent(axes.xaxis)
    as_percent(axes.yaxis)


def found_curve(scores: Any, is_wrong: Any, at: Sequence[float] = INSPECTED) -> FoundCurve:
    """Inspect examples by decreasing score, and count the wrong ones found on the way.

    Args:
        scores: [examples]; high is suspect: self-influence, an array, a baseline's scores, or
            `tracin.Suspects` by the column that leads.
        is_wrong: [examples], bool, in the order of the data: the truth, such as
            `NoisyLabels.is_noisy`.
        at: Shares of the examples to inspect, above 0 and up to 1. Between two whole numbers of
            examples the curve is straight.

    Raises:
        DataError: The shapes differ, or not both wrong and right examples are there.
        NonFiniteError: A score is NaN, which has no rank.
        QueryError: A share outside 0 to 1.

    Example:
        >>> import torch
        >>> from tracin.analysis import found_curve
        >>> scores = torch.tensor([0.1, 0.9, 0.3, 0.2])
        >>> is_wrong = torch.tensor([False, True, False, True])
        >>> print(found_curve(scores, is_wrong, at=[0.25, 0.5]))
        2 of 4 examples are wrong; the share of them found
        ranking        at 25 %  at 50 %   area  AUROC  average precision
        this ranking       0.5      0.5  0.625   0.75             0.8333
        random            0.25      0.5    0.5    0.5             0.6806
        best possible      0.5        1   0.75      1                  1
    """
    scores, is_wrong = _checked(given_scores(scores), is_wrong)
    at = tuple(at) if isinstance(at, Iterable) else (at,)
    outside = [share for share in at if not 0 < share <= 1]
    if outside:
        raise QueryError(
            f"at holds shares of the examples, above 0 and up to 1; {outside[0]!r} was given. "
            "Write 20 % as 0.2."
        )
    examples, wrong = len(scores), int(is_wrong.sum())
    size, hits = _ties(scores, is_wrong)
    end, found_by_end = size.cumsum(0), hits.cumsum(0)
    start, found_before = end - size, found_by_end - hits

    position = torch.arange(examples)  # within the ranking
    tie = torch.repeat_interleave(torch.arange(len(size)), size)
    within = (position - start[tie]).double()
    chance = hits[tie] / size[tie].double()
    curve = torch.zeros(examples + 1, dtype=torch.float64)
    curve[1:] = (found_before[tie] + (within + 1) * chance) / wrong

    # Given that a wrong example stands here, the places above it within the tie are shared out
    # among one fewer: each is wrong with chance (hits - 1) / (size - 1).
    others = (hits[tie] - 1) / (size[tie] - 1).clamp(min=1).double()
    precision = (found_before[tie] + 1 + within * others) / (position + 1)

    right_below = (examples - end) - (wrong - found_by_end)
    wins = (hits * (right_below + (size - hits) / 2)).sum()
    return FoundCurve(
        found={share: _between(curve, share * examples) for share in at},
        curve=curve,
        area=float(torch.trapezoid(curve)) / examples,
        auroc=float(wins) / (wrong * (examples - wrong)),
        average_precision=float((chance * precision).sum()) / wrong,
        wrong=wrong,
    )


def _checked(scores: Tensor, is_wrong: Any) -> tuple[Tensor, Tensor]:
    is_wrong = cpu_tensor(is_wrong)
    if is_wrong.shape != scores.shape or is_wrong.dtype != torch.bool:
        raise DataError(
            "One score and one bool per example are needed, both [examples]; came scores "
            f"{list(scores.shape)} and is_wrong {list(is_wrong.shape)} of {is_wrong.dtype}. Of "
            "positions make a mask: mask[positions] = True."
        )
    wrong = int(is_wrong.sum())
    if wrong in (0, len(scores)):
        raise DataError(
            "A ranking can be judged only where some examples are wrong and others right; "
            f"is_wrong marks {wrong} of {len(scores)}."
        )
    return scores, is_wrong


def _ties(scores: Tensor, is_wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Runs of equal scores, highest first: how many examples, how many of them wrong."""
    ascending, run, size = torch.unique(scores, return_inverse=True, return_counts=True)
    hits = torch.zeros(len(ascending), dtype=torch.int64).index_add_(0, run, is_wrong.long())
    return size.flip(0), hits.flip(0)


def _between(curve: Tensor, inspected: float) -> float:
    """The curve at a number of examples that need not be whole."""
    below = min(int(inspected), len(curve) - 2)
    # lerp is exact at both ends, so whole numbers give the curve's own values.
    return float(torch.lerp(curve[below], curve[below + 1], inspected - below))
