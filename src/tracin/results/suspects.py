"""Training examples ranked by how likely their label is wrong."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.checks import count_within, one_of
from tracin.errors import QueryError
from tracin.results.shown import Showing, Shown
from tracin.results.shown_rows import shown_rows
from tracin.results.table import aligned, arrow_table, numbers, save_parquet

# What may lead a ranking, and how suspicious its values are.
RANKINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "self_influence": torch.clone,
    "self_influence_last": torch.clone,
    "loss": torch.clone,
    "el2n": torch.clone,
    "margin": torch.neg,
    "residual": torch.abs,
}
OF_CLASSES = ("self_influence", "self_influence_last", "loss", "el2n", "margin")
OF_TARGETS = ("self_influence", "self_influence_last", "loss", "residual")
LABELS = ("ids", "positions", "given_labels", "suggested_labels")
SHOWN = 10


@final
@dataclass(frozen=True, eq=False)
class Suspects:
    """Every training example, the most suspicious label first. All columns are [train].

    polars, pandas and pyarrow take it as it is: `polars.DataFrame(suspects)`. For labels that are
    wrong at random the cheap columns (loss, el2n, margin) often find as many as self-influence:
    docs/limitations.md. `el2n` is that of M. Paul, S. Ganguli and G. K. Dziugaite, "Deep learning
    on a data diet", 2021, https://arxiv.org/abs/2107.07075.

    Labels that are classes have the scores `el2n` and `margin`, targets that are numbers have
    `residual`; reading a score that the table does not have raises a QueryError.

    Attributes:
        ids: The examples' ids.
        positions: Their positions in train.
        given_labels: The labels in the data: classes, or the targets of a regression.
        suggested_labels: The class with the highest mean probability over checkpoints, which may
            be the given one; for a regression the mean prediction over checkpoints.
        scores: The scores by name, each also an attribute.
        ranked_by: The score that leads.
    """

    ids: np.ndarray
    positions: np.ndarray
    given_labels: np.ndarray
    suggested_labels: np.ndarray
    scores: Mapping[str, Tensor]
    ranked_by: str

    @property
    def self_influence(self) -> Tensor:
        """Over the traced parameters, summed over weighted checkpoints."""
        return self._score("self_influence")

    @property
    def self_influence_last(self) -> Tensor:
        """The same over the last layer alone."""
        return self._score("self_influence_last")

    @property
    def loss(self) -> Tensor:
        """Mean over checkpoints: in nats for classes, the squared error for numbers."""
        return self._score("loss")

    @property
    def el2n(self) -> Tensor:
        """Mean over checkpoints of the length of (probabilities - one-hot label)."""
        return self._score("el2n")

    @property
    def margin(self) -> Tensor:
        """Mean over checkpoints of the given label's probability minus the largest other.

        Low is suspicious.
        """
        return self._score("margin")

    @property
    def residual(self) -> Tensor:
        """The target minus the mean prediction over checkpoints; far from 0 is suspicious."""
        return self._score("residual")

    @property
    def prediction(self) -> np.ndarray:
        """The mean prediction over checkpoints of a regression; the same as suggested_labels."""
        self._score("residual")
        return self.suggested_labels

    def __len__(self) -> int:
        return len(self.ids)

    def ranked(self, by: str) -> "Suspects":
        """The same examples, led by another column; equal values keep the data's order.

        Raises:
            QueryError: There is no such column to rank by.
        """
        check_ranking(by, self.scores)
        back = torch.from_numpy(np.argsort(self.positions, kind="stable"))
        values = RANKINGS[by](self.scores[by][back])
        order = back[values.argsort(dim=0, descending=True, stable=True)]
        return replace(self._picked(order), ranked_by=by)

    def top(self, k: int) -> "Suspects":
        """The k most suspicious."""
        return self._picked(torch.arange(self._held(k)))

    def bottom(self, k: int) -> "Suspects":
        """The k least suspicious, in the same order."""
        return self._picked(torch.arange(len(self) - self._held(k), len(self)))

    def show(
        self,
        train: Any,
        *,
        labels: Sequence[str] | None = None,
        show: Callable[[Any], Shown | str] | None = None,
        decode: Callable[[list[int]], str] | None = None,
    ) -> list[Shown]:
        """What each row's example is: picture, text, columns, label. Call it on a few: `top(20)`.

        Args:
            train: The training data that was ranked.
            labels: The classes' names, by class.
            show: Makes a `tracin.Shown` (or a text) of an example; None goes by its type.
            decode: Makes a text of a list of token ids, such as `tokenizer.decode`.

        Raises:
            DataError: `train` is not the data that was ranked.
        """
        how = Showing(labels, decode, show)
        return shown_rows(train, self.positions.tolist(), self.ids.tolist(), how)

    def columns(self) -> dict[str, np.ndarray]:
        """The table, column by column."""
        labels = {name: getattr(self, name) for name in LABELS}
        return {**labels, **{name: numbers(values) for name, values in self.scores.items()}}

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

    def _score(self, name: str) -> Tensor:
        check_ranking(name, self.scores)
        return self.scores[name]

    def _picked(self, order: Tensor) -> "Suspects":
        at = order.numpy()
        return Suspects(
            **{name: getattr(self, name)[at] for name in LABELS},
            scores={name: values[order] for name, values in self.scores.items()},
            ranked_by=self.ranked_by,
        )


def check_ranking(by: str, allowed: Iterable[str] = tuple(RANKINGS)) -> None:
    """Refuse a ranking that does not exist.

    Args:
        by: The score that shall lead.
        allowed: The scores there are.

    Raises:
        QueryError: Names those that do.
    """
    one_of(by, tuple(allowed), "The ranking of suspects", QueryError)
