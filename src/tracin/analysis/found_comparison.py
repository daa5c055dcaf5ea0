"""Found curves of several rankings side by side, each a mean over seeds (paper, figure 1b)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from tracin.analysis.found import FoundCurve, draw_limits, headings
from tracin.analysis.intervals import SeedInterval, seed_interval
from tracin.analysis.plotting import axes_for
from tracin.errors import QueryError
from tracin.plain_text import a_kind
from tracin.results.table import aligned
from tracin.results.tabular import Tabular


@final
@dataclass(frozen=True, eq=False, repr=False)
class FoundComparison(Tabular):
    """How much each of several rankings finds. Printing it gives a table.

    Every figure is a mean over seeds with a 95 % interval by Student's t; with one seed there is no
    interval.

    Attributes:
        curves: Each ranking's curves, one per seed.
    """

    curves: Mapping[str, tuple[FoundCurve, ...]]

    def found(self, name: str) -> SeedInterval:
        """The share found at each share inspected: [at]."""
        each = [list(curve.found.values()) for curve in self.curves[name]]
        return seed_interval(torch.tensor(each, dtype=torch.float64).T)

    def curve(self, name: str) -> SeedInterval:
        """The whole curve: [examples + 1]."""
        return seed_interval(torch.stack([curve.curve for curve in self.curves[name]], 1))

    def figure(self, name: str, of: str) -> SeedInterval:
        """One number of a ranking's curves: "area", "auroc" or "average_precision"."""
        values = [getattr(curve, of) for curve in self.curves[name]]
        return seed_interval(torch.tensor(values, dtype=torch.float64))

    def columns(self) -> dict[str, np.ndarray]:
        """One row per ranking, then random and best possible: means, and half the intervals."""
        first = next(iter(self.curves.values()))
        limits = {
            "random": [each.random() for each in first],
            "best possible": [each.best_possible() for each in first],
        }
        whole = FoundComparison({**self.curves, **{k: tuple(v) for k, v in limits.items()}})
        names = list(whole.curves)
        columns: dict[str, np.ndarray] = {"ranking": np.array(names, dtype=object)}
        found = [whole.found(name) for name in names]
        for at, share in enumerate(first[0].found):
            columns[f"at {100 * share:g} %"] = np.array([float(each.mean[at]) for each in found])
            columns[f"at {100 * share:g} % +-"] = np.array([float(each.half[at]) for each in found])
        for of, title in FIGURES.items():
            each = [whole.figure(name, of) for name in names]
            columns[title] = np.array([float(one.mean) for one in each])
            columns[f"{title} +-"] = np.array([float(one.half) for one in each])
        columns["seeds"] = np.array([len(each) for each in whole.curves.values()])
        return columns

    def plot(self, ax: Any = None) -> Any:
        """Draw every ranking's mean curve with its interval; returns the matplotlib axes.

        Args:
            ax: Axes to draw on; None for a new figure.

        Raises:
            QueryError: matplotlib is not installed.
        """
        axes = axes_for(ax)
        draw_limits(axes, next(iter(self.curves.values()))[0])
        for name in self.curves:
            interval = self.curve(name)
            share = torch.linspace(0, 1, len(interval.mean)).numpy()
            (line,) = axes.plot(share, interval.mean.numpy(), label=name)
            if interval.seeds > 1:
                low, high = interval.low.clamp(min=0).numpy(), interval.high.clamp(max=1).numpy()
                axes.fill_between(share, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.legend()
        return axes

    def __str__(self) -> str:
        columns = self.columns()
        first = next(iter(self.curves.values()))[0]
        head = [*headings(first), "seeds"]
        cells = []
        for at, name in enumerate(columns["ranking"]):
            figures = [
                with_half(columns[title][at], columns[f"{title} +-"][at]) for title in head[1:-1]
            ]
            cells.append([name, *figures, int(columns["seeds"][at])])
        about = f"the share of wrong examples found; {OVER_SEEDS}"
        return f"{about}\n{aligned(head, cells)}"


OVER_SEEDS = "+- is a 95 % interval over seeds, by Student's t"
FIGURES = {"area": "area", "auroc": "AUROC", "average_precision": "average precision"}


def compare_found(curves: Mapping[str, FoundCurve | Sequence[FoundCurve]]) -> FoundComparison:
    """Put the found curves of several rankings side by side.

    Args:
        curves: By the name of the ranking: its `found_curve`, or one per seed (of training, of the
            noise, or of both).

    Raises:
        QueryError: No curve, or curves of different numbers of examples or shares inspected.

    Example:
        >>> import torch
        >>> from tracin.analysis import compare_found, found_curve
        >>> is_wrong = torch.arange(10) < 2
        >>> good = torch.arange(10.0).flip(0)
        >>> print(compare_found({"good": found_curve(good, is_wrong, at=[0.2])}))
        the share of wrong examples found; +- is a 95 % interval over seeds, by Student's t
        ranking        at 20 %  area    AUROC   average precision  seeds
        good           1.0000   0.9000  1.0000  1.0000                 1
        random         0.2000   0.5000  0.5000  0.3715                 1
        best possible  1.0000   0.9000  1.0000  1.0000                 1
    """
    listed: dict[str, tuple[Any, ...]] = {
        name: tuple(each) if isinstance(each, list | tuple) else (each,)
        for name, each in curves.items()
    }
    if not listed or not all(listed.values()):
        raise QueryError("Each ranking needs at least one curve of found_curve; none was given.")
    for name, each in listed.items():
        if not all(isinstance(curve, FoundCurve) for curve in each):
            raise QueryError(
                f"curves[{name!r}] is a curve of found_curve(scores, is_wrong), or a list of them; "
                f"{a_kind(each[0])} was given."
            )
    kinds = {(curve.examples, tuple(curve.found)) for each in listed.values() for curve in each}
    if len(kinds) > 1:
        raise QueryError(
            "Curves are compared over the same number of examples and the same shares inspected; "
            f"came {', '.join(map(str, sorted(kinds)))} (examples, at). Give all the same at=."
        )
    return FoundComparison(listed)


def with_half(mean: float, half: float) -> str:
    """A mean with half its interval, as text.

    >>> with_half(0.9, 0.0123), with_half(0.9, float("nan"))
    ('0.9000 +- 0.0123', '0.9000')
    """
    return f"{mean:.4f}" if np.isnan(half) else f"{mean:.4f} +- {half:.4f}"
