"""What trainings on changed data reach, by ranking and by how much of it was changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.analysis.found_comparison import OVER_SEEDS, with_half
from tracin.analysis.given_scores import given_scores
from tracin.analysis.intervals import SeedInterval, seed_interval, seeds_in_words
from tracin.analysis.plotting import as_percent, axes_for
from tracin.errors import DataError, QueryError
from tracin.results.table import aligned, numbers
from tracin.results.tabular import Tabular


@final
@dataclass(frozen=True, eq=False, repr=False)
class RetrainingCurve(Tabular):
    """What trainings on changed data reach. Printing it gives a table.

    Means are over seeds, with 95 % intervals by Student's t; with one seed there is no interval.

    Attributes:
        names: The rankings.
        fractions: The shares of the ranking, from its top, that were changed.
        seeds: One training each.
        values: [rankings, fractions, seeds]; the metric.
        changed: [rankings, fractions, seeds]; how many examples were changed: labels put right, or
            examples removed.
        limit: [seeds]; the metric with every label right, or None.
        about: What was changed, in words.
    """

    names: tuple[str, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    values: Tensor
    changed: Tensor
    limit: Tensor | None
    about: str

    def metric(self, name: str) -> SeedInterval:
        """The metric by fraction: [fractions].

        Raises:
            QueryError: There is no such ranking.
        """
        return seed_interval(self.values[self._place(name)])

    def difference(self, name: str, other: str) -> SeedInterval:
        """How much higher the metric of one ranking is than another's: [fractions].

        Differences are taken seed by seed, so what a seed does to both is not in the interval.

        Raises:
            QueryError: There is no such ranking.
        """
        return seed_interval(self.values[self._place(name)] - self.values[self._place(other)])

    def columns(self) -> dict[str, np.ndarray]:
        """One row per ranking and fraction: examples changed, the metric, half its interval."""
        interval = seed_interval(self.values)
        return {
            "ranking": np.repeat(np.array(self.names, dtype=object), len(self.fractions)),
            "fraction": np.tile(np.array(self.fractions), len(self.names)),
            "changed": numbers(self.changed.double().mean(-1).flatten()),
            "metric": numbers(interval.mean.flatten()),
            "metric +-": numbers(interval.half.flatten()),
            "seeds": np.full(len(self.names) * len(self.fractions), len(self.seeds)),
        }

    def plot(self, ax: Any = None) -> Any:
        """Draw the metric by fraction, with intervals; returns the matplotlib axes.

        Args:
            ax: Axes to draw on; None for a new figure.

        Raises:
            QueryError: matplotlib is not installed.
        """
        axes = axes_for(ax)
        if self.limit is not None:
            best = float(self.limit.mean())
            axes.axhline(best, color="0.6", linestyle=":", label="every label right")
        for name in self.names:
            interval = self.metric(name)
            (line,) = axes.plot(self.fractions, interval.mean.numpy(), marker="o", label=name)
            if interval.seeds > 1:
                low, high = interval.low.numpy(), interval.high.numpy()
                axes.fill_between(
                    self.fractions, low, high, color=line.get_color(), alpha=0.2, linewidth=0
                )
        axes.set_xlabel(f"share of the ranking: {self.about}")
        axes.set_ylabel("metric")
        as_percent(axes.xaxis)
        axes.legend()
        return axes

    def __str__(self) -> str:
        columns = self.columns()
        rows = [
            [name, f"{100 * share:g} %", changed, with_half(mean, half)]
            for name, share, changed, mean, half, _ in zip(*columns.values(), strict=True)
        ]
        head = f"{self.about}, then trained again with {seeds_in_words(self.seeds)}; {OVER_SEEDS}"
        table = aligned(["ranking", "fraction", "changed", "metric"], rows)
        if self.limit is None:
            return f"{head}\n{table}"
        limit = seed_interval(self.limit)
        best = with_half(limit.mean.item(), limit.half.item())
        return f"{head}\n{table}\nevery label right: {best}"

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise QueryError(
                f"There is no ranking {name!r}; there are {', '.join(map(repr, self.names))}."
            )
        return self.names.index(name)


def named_scores(scores: Any, examples: int) -> dict[str, Tensor]:
    """Rankings by name, each with one score per example; a single one is called "scores".

    Raises:
        DataError: One has another number of scores than there are examples, or there is none.
    """
    given = scores if isinstance(scores, Mapping) else {"scores": scores}
    if not given:
        raise DataError("At least one ranking is needed: scores={'TracIn': self_influence}.")
    found = {name: given_scores(each, f"scores[{name!r}]") for name, each in given.items()}
    for name, each in found.items():
        if len(each) != examples:
            raise DataError(
                f"One score per training example is needed, {examples}; scores[{name!r}] has "
                f"{len(each)}."
            )
    return found


def inspection_order(scores: Tensor, seed: int) -> Tensor:
    """Positions by decreasing score; equal scores in an order drawn with the seed: [examples].

    Example:
        >>> import torch
        >>> inspection_order(torch.tensor([1.0, 3.0, 2.0]), seed=0)
        tensor([1, 2, 0])
    """
    shuffled = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    return shuffled[scores[shuffled].argsort(descending=True, stable=True)]


def checked_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Shares of a ranking, from 0 on, rising.

    Raises:
        QueryError: There is none, or one cannot be.
    """
    listed = tuple(fractions)
    is_share = all(
        isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each <= 1
        for each in listed
    )
    if not listed or not is_share or sorted(set(listed)) != list(listed):
        raise QueryError(
            f"fractions are shares of the ranking, from 0 to 1, rising; {list(listed)!r} was "
            "given. Write 20 % as 0.2."
        )
    return listed
