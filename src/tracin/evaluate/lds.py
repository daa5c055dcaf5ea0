"""The linear datamodelling score: do sums of scores predict what retrained models say?

Park et al., "TRAK: Attributing model behavior at scale", 2023, https://arxiv.org/abs/2303.14186,
after Ilyas et al., "Datamodels", 2022, https://arxiv.org/abs/2202.00622.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.analysis.correlations import ranks
from tracin.analysis.given_scores import as_numbers
from tracin.analysis.plotting import axes_for
from tracin.checks import positive_int
from tracin.errors import QueryError
from tracin.evaluate.query_mean import interval
from tracin.evaluate.resampled_ranks import Resamples, Sorted
from tracin.evaluate.retrained_losses import RetrainedLosses
from tracin.results.table import aligned, numbers
from tracin.results.tabular import Tabular
from tracin.statistics import pearson

SPLITS = 50  # of the seeds into halves
FEWEST = 5  # subsets below which a rank correlation says nothing


@final
@dataclass(frozen=True, eq=False, repr=False)
class LDS(Tabular):
    """How well sums of scores predict the losses of retrained models. Printing it gives a line.

    Attributes:
        value: The mean over queries of Spearman's rank correlation, over subsets, between the
            sum of the subset's scores and the query's mean loss over seeds, negated. From -1 to 1.
        low: The lower end of the 95 % interval, over queries and subsets drawn anew.
        high: The upper end.
        by_query: [queries]; the rank correlation of each.
        ceiling: What perfect scores would reach on average, since the losses still depend on the
            few seeds: the square root of their reliability. NaN with one seed.
        reliability: How well the mean losses of these seeds would correlate with those of as many
            other seeds. NaN with one seed.
        draws: [resamples]; the value under each resample of queries and subsets.
        subsets: How many subsets there are.
        seeds: How many trainings per subset.
    """

    value: float
    low: float
    high: float
    by_query: Tensor
    ceiling: float
    reliability: float
    draws: Tensor
    subsets: int
    seeds: int

    @property
    def of_ceiling(self) -> float:
        """The value as a share of the ceiling."""
        return self.value / self.ceiling

    def columns(self) -> dict[str, np.ndarray]:
        """One row per query."""
        return {"query": np.arange(len(self.by_query)), "lds": numbers(self.by_query)}

    def plot(self, ax: Any = None) -> Any:
        """Draw how the correlation is spread over queries; returns the matplotlib axes.

        Args:
            ax: Axes to draw on; None for a new figure.

        Raises:
            QueryError: matplotlib is not installed.
        """
        axes = axes_for(ax)
        axes.hist(self.by_query.numpy(), bins=20, range=(-1, 1))
        axes.axvline(self.value, color="black", label="mean")
        if not math.isnan(self.ceiling):
            axes.axvline(self.ceiling, color="0.6", linestyle="--", label="ceiling")
        axes.set_xlabel("rank correlation with retraining")
        axes.set_ylabel("queries")
        axes.legend()
        return axes

    def __str__(self) -> str:
        return f"LDS {with_interval(self)}; {_about(self)}"


@final
@dataclass(frozen=True, eq=False, repr=False)
class LDSComparison(Tabular):
    """The linear datamodelling scores of several methods, compared on the same resamples.

    Attributes:
        scores: Each method's result, by name.
    """

    scores: Mapping[str, LDS]

    def __getitem__(self, name: str) -> LDS:
        return self.scores[name]

    @property
    def best(self) -> str:
        """The method with the largest value."""
        return max(self.scores, key=lambda name: self.scores[name].value)

    def difference(self, one: str, other: str) -> tuple[float, float, float]:
        """How much larger the first's score is, and its 95 % interval: paired, so narrow.

        Both are computed on the same resampled queries and subsets.

        Raises:
            QueryError: There is no method of that name.
        """
        missing = [name for name in (one, other) if name not in self.scores]
        if missing:
            raise QueryError(
                f"There is no method {missing[0]!r}; there are {', '.join(map(repr, self.scores))}."
            )
        ours, theirs = self.scores[one], self.scores[other]
        low, high = interval(ours.draws - theirs.draws)
        return ours.value - theirs.value, low, high

    def columns(self) -> dict[str, np.ndarray]:
        """One row per method; differences are from the best."""
        found = list(self.scores.values())
        behind = [self.difference(name, self.best) for name in self.scores]
        return {
            "method": np.array(list(self.scores), dtype=object),
            "LDS": np.array([each.value for each in found]),
            "low": np.array([each.low for each in found]),
            "high": np.array([each.high for each in found]),
            "from best": np.array([each[0] for each in behind]),
            "from best low": np.array([each[1] for each in behind]),
            "from best high": np.array([each[2] for each in behind]),
        }

    def plot(self, ax: Any = None) -> Any:
        """Draw each method's score with its interval, and the ceiling; returns the axes.

        Args:
            ax: Matplotlib axes to draw on; None for a new figure.

        Raises:
            QueryError: matplotlib is not installed.
        """
        axes = axes_for(ax)
        names = list(self.scores)[::-1]
        found = [self.scores[name] for name in names]
        values = np.array([each.value for each in found])
        ends = np.array([[each.low, each.high] for each in found]).T
        axes.errorbar(values, names, xerr=np.abs(ends - values), fmt="o", capsize=3)
        if not math.isnan(found[0].ceiling):
            axes.axvline(found[0].ceiling, color="0.6", linestyle="--", label="ceiling")
            axes.legend()
        axes.axvline(0, color="0.8", linewidth=0.8)
        axes.set_xlabel("linear datamodelling score")
        return axes

    def __str__(self) -> str:
        ordered = sorted(self.scores, key=lambda name: -self.scores[name].value)
        rows = []
        for name in ordered:
            difference, low, high = self.difference(name, self.best)
            behind = "" if name == self.best else f"{difference:+.3f} [{low:+.3f} {high:+.3f}]"
            rows.append((name, with_interval(self.scores[name]), behind))
        table = aligned(["method", "LDS", "from best"], rows)
        return f"{table}\n{_about(self.scores[self.best])}"


def lds(scores: Any, truth: RetrainedLosses, *, resamples: int = 1000, seed: int = 0) -> LDS:
    """The linear datamodelling score of a method, with its interval and its ceiling.

    Args:
        scores: [train, queries], as `TracIn.influence` returns it; positive is a proponent.
        truth: What `retrained_losses` measured, for the same examples and queries.
        resamples: How often queries and subsets are drawn anew, with replacement, for the interval.
        seed: Decides the draws.

    Raises:
        QueryError: The shapes do not fit, there are fewer than five subsets, or no resamples.
        NonFiniteError: A score is NaN.

    Example:
        >>> import torch
        >>> from tracin.evaluate import RetrainedLosses, half_subsets, lds
        >>> subsets = half_subsets(40, 50)
        >>> worth = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> losses = -worth[subsets].sum(1)  # each example lowers the loss by what it is worth
        >>> truth = RetrainedLosses(subsets, losses[:, None], examples=40)
        >>> print(lds(worth, truth))
        LDS 1.000 [1.000 1.000]; 3 queries, 50 subsets x 1 seed
    """
    return compare_lds({"scores": scores}, truth, resamples=resamples, seed=seed)["scores"]


def compare_lds(
    scores: Mapping[str, Any],
    truth: RetrainedLosses,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> LDSComparison:
    """The linear datamodelling scores of several methods, on the same resamples.

    Args:
        scores: Each method's [train, queries], by name.
        truth: As for `lds`.
        resamples: As for `lds`.
        seed: As for `lds`.

    Raises:
        QueryError: As `lds`, or there is no method.
        NonFiniteError: A score is NaN.

    Example:
        >>> import torch
        >>> from tracin.evaluate import RetrainedLosses, compare_lds, half_subsets
        >>> subsets = half_subsets(40, 50)
        >>> worth = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> losses = -worth[subsets].sum(1)
        >>> truth = RetrainedLosses(subsets, losses[:, None], examples=40)
        >>> print(compare_lds({"truth": worth, "opposite": -worth}, truth))
        method    LDS                     from best
        truth     1.000 [1.000 1.000]
        opposite  -1.000 [-1.000 -1.000]  -2.000 [-2.000 -2.000]
        3 queries, 50 subsets x 1 seed
    """
    if not scores:
        raise QueryError("At least one method's scores are needed; none were given.")
    positive_int(resamples, "resamples", QueryError)
    subsets, seeds, queries = truth.losses.shape
    if subsets < FEWEST:
        raise QueryError(
            f"A rank correlation over {subsets} subsets says nothing: at least {FEWEST} are "
            "needed, and 50 to 100 give useful intervals."
        )
    is_in = truth.is_in.double()
    sums = {name: is_in @ _checked(each, name, truth) for name, each in scores.items()}
    wanted = -truth.mean  # [subsets, queries]
    draws = Resamples.of(subsets, queries, resamples, seed)
    target = Sorted.of(wanted)
    right = ranks(wanted)
    certain = _reliability(truth.losses.double())
    ceiling = math.sqrt(max(certain, 0.0)) if not math.isnan(certain) else math.nan
    found = {}
    for name, each in sums.items():
        drawn = draws.mean_correlations(Sorted.of(each), target)
        low, high = interval(drawn)
        # Scores that are all the same predict nothing: 0, not a query to leave out.
        by_query = pearson(ranks(each), right).nan_to_num(0.0)
        found[name] = LDS(
            float(by_query.mean()), low, high, by_query, ceiling, certain, drawn, subsets, seeds
        )
    return LDSComparison(found)


def _checked(scores: Any, name: str, truth: RetrainedLosses) -> Tensor:
    values = as_numbers(scores, f"The scores of {name!r}")
    expected = truth.examples, truth.losses.shape[2]
    if tuple(values.shape) != expected:
        raise QueryError(
            f"Scores are [train, queries], of the examples and queries that were retrained, here "
            f"{list(expected)}; those of {name!r} are {list(values.shape)}."
        )
    return values


def _reliability(losses: Tensor) -> float:
    """How well two means over as many seeds correlate, from halves of the seeds.

    The mean rank correlation over ways to halve the seeds, then the Spearman-Brown formula for
    halves: https://doi.org/10.1111/j.2044-8295.1910.tb00206.x. With an odd number of seeds one is
    left out of each split, and the formula is for the seeds there are.
    """
    seeds = losses.shape[1]
    if seeds < 2:
        return math.nan
    size = seeds // 2
    found = []
    for one, other in _splits(seeds, size):
        halves = (ranks(losses[:, each].mean(1)) for each in (one, other))
        found.append(pearson(*halves).nan_to_num(0.0).mean())
    half, times = float(torch.stack(found).mean()), seeds / size
    return times * half / (1 + (times - 1) * half)


def _splits(seeds: int, size: int) -> list[tuple[list[int], list[int]]]:
    """All pairs of disjoint groups of seeds, or as many random ones where there are too many."""
    if math.comb(seeds, size) * math.comb(seeds - size, size) > 2 * SPLITS:
        generator = torch.Generator().manual_seed(0)
        orders = (torch.randperm(seeds, generator=generator).tolist() for _ in range(SPLITS))
        return [(order[:size], order[size : 2 * size]) for order in orders]
    return [
        (list(one), list(other))
        for one in combinations(range(seeds), size)
        for other in combinations([at for at in range(seeds) if at not in one], size)
        if one < other
    ]


def with_interval(found: LDS) -> str:
    """The value and its interval, as text."""
    return f"{found.value:.3f} [{found.low:.3f} {found.high:.3f}]"


def _about(found: LDS) -> str:
    ceiling = "" if math.isnan(found.ceiling) else f"ceiling {found.ceiling:.3f}; "
    many = f"{found.seeds} seed{'s' if found.seeds > 1 else ''}"
    return f"{ceiling}{len(found.by_query)} queries, {found.subsets} subsets x {many}"
