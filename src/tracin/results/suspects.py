"""Training examples ranked by how likely their label is wrong."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any, final, overload

import numpy as np
import torch
from torch import Tensor

from tracin.checks import count_within, one_of
from tracin.errors import QueryError
from tracin.plain_text import plain
from tracin.results.held_out import HeldOut
from tracin.results.review import FEWEST, ReviewSample, WrongLabels, drawn, estimated
from tracin.results.shown import ClassNames, Showing, Shown
from tracin.results.shown_rows import shown_rows
from tracin.results.table import SCREEN, aligned, numbers
from tracin.results.tabular import Tabular
from tracin.statistics import ranks

# What may lead a ranking, and how suspicious its values are.
RANKINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "given_probability": torch.neg,
    "suggested_probability": torch.clone,
    "loss_and_margin": torch.clone,
    "loss": torch.clone,
    "margin": torch.neg,
    "aum": torch.neg,
    "el2n": torch.clone,
    "residual": torch.abs,
    "final_loss": torch.clone,
    "final_margin": torch.neg,
    "final_residual": torch.abs,
    "self_influence": torch.clone,
    "self_influence_last": torch.clone,
}
OF_TARGETS = (
    "residual",
    "loss",
    "final_residual",
    "final_loss",
    "self_influence",
    "self_influence_last",
)
OF_CLASSES = tuple(name for name in RANKINGS if not name.endswith("residual"))
LABELS = ("ids", "positions", "given_labels", "suggested_labels")
# The columns on a screen, with short names where they need them; the rest would not fit.
ON_SCREEN = {
    "ids": "id",
    "given_labels": "given",
    "given_probability": "p",
    "suggested_labels": "suggested",
    "suggested_probability": "p",
    "loss_and_margin": "rank",
    "residual": "residual",
    "loss": "loss",
    "margin": "margin",
    "self_influence": "self_influence",
}
FIRST = 5  # of these come before the score that leads, which is never the one that does not fit
NO_OTHER = "no other suggestion"
SHOWN = 10


@final
@dataclass(frozen=True)
class Suspect:
    """One training example of the table.

    Attributes:
        id: Its id: the position in train, unless a `tracin.WithIds` has others.
        position: Its position in train.
        given_label: The label in the data.
        suggested_label: As in `Suspects`.
        scores: The scores by name.
    """

    id: Any
    position: int
    given_label: Any
    suggested_label: Any
    scores: Mapping[str, float]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Suspects(Tabular):
    """Every training example, the most suspicious label first. All columns are [train].

    polars, pandas and pyarrow take it as it is: `polars.DataFrame(suspects)`. Labels that are
    classes are ranked by `loss_and_margin`, targets that are numbers by `residual`; `ranked` takes
    any other column. Which errors each column finds: docs/mislabelled.md. Classes have
    probabilities, margins, `aum` and `el2n`, numbers have residuals; reading a score that the table
    does not have raises a QueryError.

    Means are over the `checkpoints` that the table names, each counted alike.

    Attributes:
        ids: The examples' ids.
        positions: Their positions in train.
        given_labels: The labels in the data: classes, or the targets of a regression.
        suggested_labels: The class other than the given one with the highest mean probability; for
            a regression the mean prediction. Look at the example before you believe it.
        scores: The scores by name, each also an attribute.
        ranked_by: The score that leads.
        checkpoints: The names of the checkpoints that means are taken over.
        held_out: How well each checkpoint does on the validation data, by which `checkpoints` were
            chosen; None without.
    """

    ids: np.ndarray
    positions: np.ndarray
    given_labels: np.ndarray
    suggested_labels: np.ndarray
    scores: Mapping[str, Tensor]
    ranked_by: str
    checkpoints: tuple[str, ...] = ()
    held_out: HeldOut | None = None

    @property
    def given_probability(self) -> Tensor:
        """The mean probability of the given label. Low is suspicious."""
        return self._score("given_probability")

    @property
    def suggested_probability(self) -> Tensor:
        """The mean probability of the suggested label."""
        return self._score("suggested_probability")

    @property
    def loss_and_margin(self) -> Tensor:
        """The mean of two ranks, by loss and by margin, from 0 (right) to 1 (suspect).

        A rank is the share of the training examples that are less suspect; of equal ones half
        count.
        """
        return self._score("loss_and_margin")

    @property
    def loss(self) -> Tensor:
        """The mean loss: in nats for classes, the squared error for numbers."""
        return self._score("loss")

    @property
    def margin(self) -> Tensor:
        """Mean of the given label's probability minus the largest other. Low is suspicious."""
        return self._score("margin")

    @property
    def aum(self) -> Tensor:
        """Mean of the given label's class score minus the largest other, before the softmax.

        Low is suspicious. G. Pleiss et al., "Identifying mislabeled data using the area under the
        margin ranking", 2020, https://arxiv.org/abs/2001.10528.
        """
        return self._score("aum")

    @property
    def el2n(self) -> Tensor:
        """Mean of the length of (probabilities - one-hot label).

        M. Paul, S. Ganguli and G. K. Dziugaite, "Deep learning on a data diet", 2021,
        https://arxiv.org/abs/2107.07075.
        """
        return self._score("el2n")

    @property
    def residual(self) -> Tensor:
        """The target minus the mean prediction; far from 0 is suspicious."""
        return self._score("residual")

    @property
    def prediction(self) -> np.ndarray:
        """The mean prediction of a regression; the same as suggested_labels."""
        self._score("residual")
        return self.suggested_labels

    @property
    def final_loss(self) -> Tensor:
        """The loss at the run's last checkpoint."""
        return self._score("final_loss")

    @property
    def final_margin(self) -> Tensor:
        """The margin at the run's last checkpoint. Low is suspicious."""
        return self._score("final_margin")

    @property
    def final_residual(self) -> Tensor:
        """The target minus the prediction of the run's last checkpoint."""
        return self._score("final_residual")

    @property
    def self_influence(self) -> Tensor:
        """High where an example is rare or memorised, right or wrong.

        Over the traced parameters, summed over all weighted checkpoints of the run, as
        `TracIn.self_influence` gives it.
        """
        return self._score("self_influence")

    @property
    def self_influence_last(self) -> Tensor:
        """The same over the last layer alone."""
        return self._score("self_influence_last")

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, key: int) -> Suspect: ...
    @overload
    def __getitem__(self, key: slice) -> "Suspects": ...
    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...
    def __getitem__(self, key: int | slice | str) -> "Suspect | Suspects | np.ndarray":
        """A row by its place in the ranking, some of the rows, or a column by its name."""
        if isinstance(key, str):
            columns = self.columns()
            one_of(key, columns, "A column of suspects", QueryError)
            return columns[key]
        if isinstance(key, slice):
            return self._picked(torch.tensor(range(len(self))[key], dtype=torch.int64))
        at = range(len(self))[key]
        return Suspect(
            id=self.ids[at],
            position=int(self.positions[at]),
            given_label=self.given_labels[at],
            suggested_label=self.suggested_labels[at],
            scores={name: float(each[at]) for name, each in self.scores.items()},
        )

    def __iter__(self) -> Iterator[Suspect]:
        return (self[at] for at in range(len(self)))

    def head(self, n: int = SHOWN) -> "Suspects":
        """The n most suspicious; all, if there are fewer."""
        return self[: max(0, n)]

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

    def top(self, k: int = SHOWN) -> "Suspects":
        """The k most suspicious. Raises QueryError where there are fewer; `head` does not."""
        return self._picked(torch.arange(self._held(k)))

    def bottom(self, k: int) -> "Suspects":
        """The k least suspicious, in the same order."""
        return self._picked(torch.arange(len(self) - self._held(k), len(self)))

    def sample(self, n: int = 140, seed: int = 0) -> ReviewSample:
        """Rows to look at, to learn how many labels are wrong; `estimate` takes what you find.

        The rows are drawn at random from seven parts of the ranking, each as long as all before it,
        so that suspect rows come often and others now and then. No threshold on a score tells how
        many labels are wrong; such a sample does, whatever the ranking is worth.

        Args:
            n: How many rows, at least 14.
            seed: Of the random numbers.

        Returns:
            The rows in random order: those that you looked at before you stopped are a sample, too.

        Raises:
            QueryError: n is below 14 or larger than the table.

        Example:
            >>> import torch, tracin
            >>> model = torch.nn.Linear(2, 2)
            >>> run = tracin.TracIn(
            ...     model, "cross_entropy", [model.state_dict()], learning_rates="equal"
            ... )
            >>> suspects = run.find_mislabelled((torch.randn(500, 2), torch.randint(2, (500,))))
            >>> is_wrong = {int(id): False for id in suspects.sample(50).ids}  # looked at by you
            >>> print(suspects.estimate(is_wrong))
            about 0 of 500 labels are wrong (95 %: 0 to 30)
        """
        rows = drawn(len(self), n, seed)
        columns = {name: each[rows] for name, each in self.columns().items()}
        return ReviewSample(columns, self.ranked_by, len(self))

    def estimate(
        self, reviewed: Mapping[Any, bool | None] | Iterable[tuple[Any, bool | None]]
    ) -> WrongLabels:
        """How many labels are wrong, with a 95 % interval, from a reviewed `sample`.

        Args:
            reviewed: For each id of the sample that you looked at, True where its label is wrong,
                False where it is right, None where you cannot tell: a mapping, or pairs such as
                `zip(table["ids"], table["is_wrong"])`. Rows that you cannot tell are taken to be
                wrong as often as the others near them.

        Returns:
            The estimate, without bias; print it.

        Raises:
            QueryError: An unknown id, an answer that is none of these, or rows that are no sample
                of this ranking.
        """
        return estimated({each: row for row, each in enumerate(self.ids.tolist())}, reviewed)

    def show(
        self,
        train: Any,
        *,
        labels: ClassNames | None = None,
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

    def __str__(self) -> str:
        return self.as_text()

    def as_text(self, n: int = SHOWN) -> str:
        """What printing shows, with the first n rows: the table, and how to go on from it."""
        columns = self.head(n).columns()
        scores = [*ON_SCREEN]
        names = dict.fromkeys([*scores[:FIRST], self.ranked_by, *scores[FIRST:]])
        shown = {name: columns[name] for name in names if name in columns}
        cells = {**shown, "suggested_labels": self._suggestions(columns)}
        header = [ON_SCREEN.get(name, name) for name in shown]
        table = aligned(header, list(zip(*cells.values(), strict=True)))
        left = len(self) - len(columns["ids"])
        more = [f"... {left} more"] if left else []
        return "\n".join([self._head(), table, *more, *self._advice()])

    def _head(self) -> str:
        if self.held_out is None:
            return f"ranked by {self.ranked_by}"
        over = " over all checkpoints" if self.ranked_by.startswith("self_influence") else ""
        best = ", ".join(map(plain, self.checkpoints))
        return f"ranked by {self.ranked_by}{over}, means over the best checkpoints: {best}"

    def _suggestions(self, columns: Mapping[str, np.ndarray]) -> list[Any]:
        """As they are shown: a label that is the given one suggests nothing."""
        pairs = zip(columns["given_labels"], columns["suggested_labels"], strict=True)
        return [NO_OTHER if given == label else label for given, label in pairs]

    def _advice(self) -> list[str]:
        """What is known of the number of wrong labels, and what tells more."""
        if len(self) < FEWEST or int(self.positions.max()) + 1 != len(self):
            return []  # rows that were picked from a ranking are no ranking to sample
        advice = "Review suspects.sample(); suspects.estimate(reviewed) says how many are wrong."
        if "suggested_probability" in self.scores:
            preferred = int((self.suggested_probability > self.given_probability).sum())
            known = f"The model prefers another label for {preferred:,} of {len(self):,} examples"
            if self.held_out is not None and self.held_out.accuracies is not None:
                wrong = 1 - self.held_out.accuracies[list(self.held_out.best)].mean()
                known += f", and for {wrong:.1%} of the validation data"
            advice = f"{known}. Not all of these labels are wrong. {advice}"
        return ["", *wrap(advice, SCREEN)]

    def _held(self, k: int) -> int:
        count = int(k) if isinstance(k, np.integer) else k
        return count_within(count, len(self), f"there are {len(self)}", QueryError, "suspects")

    def _score(self, name: str) -> Tensor:
        check_ranking(name, self.scores)
        return self.scores[name]

    def _picked(self, order: Tensor) -> "Suspects":
        at = order.numpy()
        return replace(
            self,
            **{name: getattr(self, name)[at] for name in LABELS},
            scores={name: values[order] for name, values in self.scores.items()},
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


def mean_rank(*scores: Tensor) -> Tensor:
    """The mean of each example's ranks by some scores, from 0 to 1: [examples].

    A rank is the share of the examples with a lower score; of equal ones, itself included, half
    count.

    Args:
        scores: Each [examples]; high is suspicious.

    Example:
        >>> mean_rank(torch.tensor([1.0, 3.0, 3.0, 9.0]))
        tensor([0.1250, 0.5000, 0.5000, 0.8750], dtype=torch.float64)
    """
    table = torch.stack(scores, 1)
    return (ranks(table) - 0.5).mean(1) / len(table)
