"""What an evaluation found, as one table, with a recommendation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch import Tensor

from tracin.errors import QueryError
from tracin.evaluate.identical_class import IdenticalClass
from tracin.evaluate.lds import LDSComparison, with_interval
from tracin.evaluate.query_mean import QueryMean
from tracin.evaluate.recommendation import recommended
from tracin.evaluate.retrieval import Retrieval
from tracin.evaluate.tail_patch import TailPatch
from tracin.results.table import aligned_in_parts
from tracin.results.tabular import Tabular


@final
@dataclass(frozen=True, eq=False)
class MethodResult:
    """What was measured of one method.

    Attributes:
        name: The method's name.
        advice: What to write to have it.
        scores: [train, queries].
        identical_class: None where the loss knows no classes.
        duplicates: How near the top a copy of each query stands.
        tail_patch: None where no learning rate is known.
        randomised: The rank correlation with the scores of shuffled weights; None where the method
            does not read the model.
        seconds: What the scores took, of training examples and copies together.
    """

    name: str
    advice: str
    scores: Tensor
    identical_class: IdenticalClass | None
    duplicates: Retrieval
    tail_patch: TailPatch | None
    randomised: QueryMean | None
    seconds: float


@final
@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Tabular):
    """Methods side by side. Printing it gives a table and a recommendation.

    Attributes:
        methods: What was measured of each.
        lds: Their linear datamodelling scores; None without retraining.
    """

    methods: Sequence[MethodResult]
    lds: LDSComparison | None

    def __getitem__(self, name: str) -> MethodResult:
        for each in self.methods:
            if each.name == name:
                return each
        known = ", ".join(repr(each.name) for each in self.methods)
        raise QueryError(f"There is no method {name!r}; there are {known}.")

    @property
    def recommendation(self) -> str:
        """What to use, in words, with the figures that say so; or why they do not say it."""
        seconds = {each.name: each.seconds for each in self.methods}
        advice = {each.name: each.advice for each in self.methods}
        return recommended(self.lds, advice, seconds)

    def columns(self) -> dict[str, np.ndarray]:
        """One row per method; NaN where a measure does not apply."""
        found: dict[str, list[Any]] = {"method": [each.name for each in self.methods]}
        if self.lds is not None:
            for name in ("value", "low", "high"):
                column = "LDS" if name == "value" else f"LDS {name}"
                found[column] = [getattr(self.lds[each.name], name) for each in self.methods]
        for label, mean_of in _MEASURES.items():
            means = [mean_of(each) for each in self.methods]
            for name in ("value", "low", "high"):
                column = label if name == "value" else f"{label} {name}"
                found[column] = [math.nan if one is None else getattr(one, name) for one in means]
        found["seconds"] = [each.seconds for each in self.methods]
        return {
            name: np.array(values, dtype=object if name == "method" else np.float64)
            for name, values in found.items()
        }

    def plot(self, ax: Any = None) -> Any:
        """Draw the linear datamodelling scores; returns the matplotlib axes.

        Args:
            ax: Axes to draw on; None for a new figure.

        Raises:
            QueryError: There are none, or matplotlib is not installed.
        """
        if self.lds is None:
            raise QueryError(
                "Only linear datamodelling scores are drawn, and nothing was retrained. Give a "
                "truth: retrained_losses(...)."
            )
        return self.lds.plot(ax)

    def __str__(self) -> str:
        return f"{self._table()}\n{self._legend()}\n\n{self.recommendation}"

    def _table(self) -> str:
        shown = {
            label: mean_of
            for label, mean_of in _MEASURES.items()
            if any(mean_of(each) is not None for each in self.methods)
        }
        header = ["method", *(["LDS"] if self.lds else []), *shown, "seconds"]
        rows = []
        for each in self.methods:
            lds = [with_interval(self.lds[each.name])] if self.lds else []
            cells = [_short(mean_of(each)) for mean_of in shown.values()]
            rows.append([each.name, *lds, *cells, each.seconds])
        return aligned_in_parts(header, rows)

    def _legend(self) -> str:
        lines = []
        if self.lds is not None:
            first = next(iter(self.lds.scores.values()))
            known = "unknown: one seed" if math.isnan(first.ceiling) else f"{first.ceiling:.3f}"
            lines.append(
                f"LDS: rank correlation with retraining on {first.subsets} subsets; ceiling {known}"
            )
        for each in self.methods:
            if each.identical_class is not None:
                lines.append(
                    f"class: first {each.identical_class.k} of the query's class; by chance "
                    f"{each.identical_class.chance:.3f}"
                )
                break
        lines.append("copy: mean reciprocal rank of a copy of the query; 1 is best")
        for each in self.methods:
            if each.tail_patch is not None:
                lines.append(
                    f"patch: drop of the loss by a step on the first {each.tail_patch.k}, above "
                    "random ones"
                )
                break
        lines.append("shuffled: rank correlation with scores of shuffled weights; 0 is best")
        return "\n".join(lines)


_MEASURES = {
    "class": lambda each: each.identical_class and each.identical_class.top,
    "copy": lambda each: each.duplicates.mrr,
    "patch": lambda each: each.tail_patch and each.tail_patch.gain,
    "shuffled": lambda each: each.randomised,
}


def _short(mean: QueryMean | None) -> str:
    return "" if mean is None else f"{mean.value:.3g} [{mean.low:.3g} {mean.high:.3g}]"
