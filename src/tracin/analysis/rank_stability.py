"""How much the order of examples depends on the seed of the training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.analysis.given_scores import as_numbers
from tracin.analysis.intervals import t_quantile
from tracin.analysis.plotting import axes_for
from tracin.checks import count_within
from tracin.errors import DataError, QueryError
from tracin.results.table import aligned
from tracin.results.tabular import Tabular
from tracin.statistics import pearson, ranks


@final
@dataclass(frozen=True, eq=False, repr=False)
class RankStability(Tabular):
    """How well the rankings of several runs agree, pair by pair. Printing it gives a table.

    Attributes:
        names: The runs.
        k: How many examples of each ranking's top are compared.
        examples: How many examples are ranked.
        spearman: [runs, runs]; the rank correlation over all examples, ties sharing their places;
            NaN where a run's scores are all the same. Of [train, queries] the mean over queries.
        overlap: [runs, runs]; the share of the top k that two runs have in common. Ties at the edge
            of the top count by the chance that each is in it.
    """

    names: tuple[str, ...]
    k: int
    examples: int
    spearman: Tensor
    overlap: Tensor

    @property
    def chance(self) -> float:
        """The overlap of two random rankings, on average."""
        return self.k / self.examples

    @property
    def mean_spearman(self) -> tuple[float, float]:
        """The mean over pairs of runs, and half its 95 % interval; see `jackknifed`."""
        return jackknifed(self.spearman)

    @property
    def mean_overlap(self) -> tuple[float, float]:
        """The mean over pairs of runs, and half its 95 % interval; see `jackknifed`."""
        return jackknifed(self.overlap)

    def columns(self) -> dict[str, np.ndarray]:
        """One row per pair of runs."""
        pairs = list(combinations(range(len(self.names)), 2))
        one, other = np.array(pairs).T
        names = np.array(self.names, dtype=object)
        return {
            "run": names[one],
            "other": names[other],
            "spearman": self.spearman.numpy()[one, other],
            f"top {self.k} in common": self.overlap.numpy()[one, other],
        }

    def plot(self, ax: Any = None) -> Any:
        """Draw the rank correlations as a grid of runs; returns the matplotlib axes.

        Args:
            ax: Axes to draw on; None for a new figure.

        Raises:
            QueryError: matplotlib is not installed.
        """
        axes = axes_for(ax)
        axes.imshow(self.spearman.numpy(), vmin=-1, vmax=1, cmap="RdBu")
        places = range(len(self.names))
        axes.set_xticks(places, self.names, rotation=45, ha="right")
        axes.set_yticks(places, self.names)
        for row in places:
            for column in places:
                value = float(self.spearman[row, column])
                axes.text(column, row, f"{value:.2f}", ha="center", va="center")
        axes.set_title("rank correlation (Spearman)")
        return axes

    def __str__(self) -> str:
        columns = self.columns()
        table = aligned(
            list(columns), list(zip(*(c.tolist() for c in columns.values()), strict=True))
        )
        correlation, common = self.mean_spearman, self.mean_overlap
        return (
            f"{table}\nmean Spearman {_in_words(*correlation)}; mean share of the top {self.k} in "
            f"common {_in_words(*common)}, by chance {self.chance:.3f}"
        )


def rank_stability(runs: Mapping[str, Any] | Sequence[Any], k: int = 100) -> RankStability:
    """Compare the rankings of the same examples by several runs, such as trainings with other seeds.

    A list of examples that another seed would not give says more about the seed than about the
    data; look at this before reading one.

    Args:
        runs: The scores of each run, in the order of the data: [train], or [train, queries] to
            compare query by query; by name, or a list. At least two.
        k: How many examples of each ranking's top to compare.

    Raises:
        QueryError: There are fewer than two runs, or k is no number of examples.
        DataError: Runs have scores of different shapes.
        NonFiniteError: A score is NaN.

    Example:
        >>> from tracin.analysis import rank_stability
        >>> print(rank_stability([[5, 4, 3, 2, 1], [5, 4, 3, 1, 2], [5, 4, 2, 3, 1]], k=2))
        run    other  spearman  top 2 in common
        run 0  run 1       0.9                1
        run 0  run 2       0.9                1
        run 1  run 2       0.7                1
        mean Spearman 0.833 +- 0.574; mean share of the top 2 in common 1.000 +- 0.000, by chance 0.400
    """  # noqa: E501
    given = (
        runs if isinstance(runs, Mapping) else {f"run {at}": each for at, each in enumerate(runs)}
    )
    if len(given) < 2:
        raise QueryError(
            f"Stability is how runs differ, so at least two are needed; {len(given)} was given."
        )
    scores = [as_numbers(each, f"The scores of {name!r}") for name, each in given.items()]
    shapes = {tuple(each.shape) for each in scores}
    if len(shapes) > 1 or scores[0].ndim not in (1, 2):
        raise DataError(
            "Every run scores the same examples, [train] or [train, queries]; came "
            f"{', '.join(str(list(each)) for each in sorted(shapes))}."
        )
    columns = [each.reshape(len(each), -1) for each in scores]  # [train, queries]
    examples = len(columns[0])
    count_within(k, examples, f"there are {examples}", QueryError, "examples of each ranking's top")
    ranked = [ranks(each) for each in columns]
    inside = [chance_in_top(each, k) for each in columns]
    count = len(columns)
    spearman = torch.full((count, count), torch.nan, dtype=torch.float64)
    overlap = torch.zeros_like(spearman)
    for one in range(count):
        for other in range(one, count):
            each = pearson(ranked[one], ranked[other]).nanmean()
            common = (inside[one] * inside[other]).sum(0).mean() / k
            spearman[one, other] = spearman[other, one] = each
            overlap[one, other] = overlap[other, one] = common
    return RankStability(tuple(given), k, examples, spearman, overlap)


def chance_in_top(scores: Tensor, k: int) -> Tensor:
    """How likely each example is among the k highest, over all orders of the ties.

    Args:
        scores: [train, queries].
        k: How many.

    Example:
        >>> import torch
        >>> chance_in_top(torch.tensor([[3.0], [2.0], [2.0], [1.0]]), 2).flatten()
        tensor([1.0000, 0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    edge = scores.topk(k, dim=0).values[-1]  # [queries]
    above, level = scores > edge, scores == edge
    share = (k - above.sum(0)).double() / level.sum(0)
    return torch.where(level, share, above.double())


def jackknifed(pairs: Tensor) -> tuple[float, float]:
    """The mean over pairs of runs, and half its 95 % interval, by leaving out one run at a time.

    Pairs share runs, so they are no independent values; runs are. The jackknife of such a mean:
    J. Arvesen, "Jackknifing U-statistics", 1969, https://doi.org/10.1214/aoms/1177697287.

    Args:
        pairs: [runs, runs], symmetric; the diagonal is not used.

    Returns:
        The mean, and half the interval by Student's t; NaN with fewer than three runs.

    Example:
        >>> import torch
        >>> mean, half = jackknifed(torch.full((4, 4), 0.5))
        >>> mean, half
        (0.5, 0.0)
    """
    count = len(pairs)
    off = pairs.double().clone().fill_diagonal_(0)
    mean = float(off.sum()) / (count * (count - 1))
    if count < 3:
        return mean, math.nan
    without = (off.sum() - 2 * off.sum(1)) / ((count - 1) * (count - 2))
    error = math.sqrt((count - 1) / count * float((without - without.mean()).square().sum()))
    return mean, t_quantile(count - 1) * error


def _in_words(mean: float, half: float) -> str:
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} +- {half:.3f}"
