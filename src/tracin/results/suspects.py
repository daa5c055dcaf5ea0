"""Training examples ranked by how likely their label is wrong."""

import os
from dataclasses import dataclass, fields, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.checks import count_within, one_of
from tracin.errors import QueryError
from tracin.results.table import aligned, arrow_table, numbers, save_parquet

# What may lead a ranking, and whether high or low values are suspicious.
HIGH, LOW = 1, -1
RANKINGS = {
    "self_influence": HIGH,
    "self_influence_last": HIGH,
    "loss": HIGH,
    "el2n": HIGH,
    "margin": LOW,
}
SHOWN = 10


@final
@dataclass(frozen=True, eq=False)
class Suspects:
    """Every training example, the most suspicious label first. All columns are [train].

    polars, pandas and pyarrow take it as it is: `polars.DataFrame(suspects)`. For labels that are
    wrong at random the cheap columns (loss, el2n, margin) often find as many as self-influence:
    docs/limitations.md. `el2n` is that of M. Paul, S. Ganguli and G. K. Dziugaite, "Deep learning
    on a data diet", 2021, https://arxiv.org/abs/2107.07075.

    Attributes:
        ids: The examples' ids.
        positions: Their positions in train.
        given_labels: The labels in the data.
        suggested_labels: The class with the highest mean probability over checkpoints; it may be
            the given one.
        self_influence: Over the traced parameters, summed over weighted checkpoints.
        self_influence_last: The same over the last layer alone.
        loss: Mean over checkpoints, in nats.
        el2n: Mean over checkpoints of the length of (probabilities - one-hot label).
        margin: Mean over checkpoints of the given label's probability minus the largest other;
            low is suspicious.
        ranked_by: The column that leads.
    """

    ids: np.ndarray
    positions: np.ndarray
    given_labels: np.ndarray
    suggested_labels: np.ndarray
    self_influence: Tensor
    self_influence_last: Tensor
    loss: Tensor
    el2n: Tensor
    margin: Tensor
    ranked_by: str

    def __len__(self) -> int:
        return len(self.ids)

    def ranked(self, by: str) -> "Suspects":
        """The same examples, led by another column; equal values keep the data's order.

        Raises:
            QueryError: There is no such column to rank by.
        """
        check_ranking(by)
        back = torch.from_numpy(np.argsort(self.positions, kind="stable"))
        values = RANKINGS[by] * getattr(self, by)[back]
        order = back[values.argsort(dim=0, descending=True, stable=True)]
        return replace(self._picked(order), ranked_by=by)

    def top(self, k: int) -> "Suspects":
        """The k most suspicious."""
        return self._picked(torch.arange(self._held(k)))

    def bottom(self, k: int) -> "Suspects":
        """The k least suspicious, in the same order."""
        return self._picked(torch.arange(len(self) - self._held(k), len(self)))

    def columns(self) -> dict[str, np.ndarray]:
        """The table, column by column."""
        columns = {each.name: getattr(self, each.name) for each in fields(self)[:-1]}
        return {
            name: numbers(values) if isinstance(values, Tensor) else values
            for name, values in columns.items()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `columns` to a Parquet file: whole, or not at all."""
        save_parquet(self.columns(), path)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return arrow_table(self.columns()).__arrow_c_stream__(requested_schema)

    def __str__(self) -> str:
        shown = self.top(min(SHOWN, len(self))).columns()
        shown.pop("positions")
        rows = list(zip(*shown.values(), strict=True))
        names = ["id", "given", "suggested", *list(shown)[3:]]
        more = f"\n... {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return f"ranked by {self.ranked_by}\n{aligned(names, rows)}{more}"

    def _held(self, k: int) -> int:
        count = int(k) if isinstance(k, np.integer) else k
        return count_within(count, len(self), f"there are {len(self)}", QueryError, "suspects")

    def _picked(self, order: Tensor) -> "Suspects":
        at = order.numpy()
        picked: dict[str, Any] = {}
        for each in fields(self)[:-1]:
            values = getattr(self, each.name)
            picked[each.name] = values[order] if isinstance(values, Tensor) else values[at]
        return Suspects(**picked, ranked_by=self.ranked_by)


def check_ranking(by: str) -> None:
    """Refuse a ranking that does not exist.

    Raises:
        QueryError: Names those that do.
    """
    one_of(by, RANKINGS, "The ranking of suspects", QueryError)
