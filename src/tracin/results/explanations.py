"""What explains each query: its strongest proponents and opponents."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final, overload

import numpy as np
import torch
from torch import Tensor

from tracin.checks import count_within, one_of
from tracin.errors import QueryError
from tracin.plain_text import many, plain
from tracin.printed import Printed
from tracin.results.example_facts import ExampleFacts
from tracin.results.recall import Recall
from tracin.results.shown import ClassNames, Showing, Shown, shortened
from tracin.results.shown_rows import shown_queries, shown_rows
from tracin.results.table import aligned, cell, distinct, numbers
from tracin.results.tabular import Tabular

SHOWN = 60  # characters of an example in a table


@final
@dataclass(frozen=True)
class Influence:
    """One training example that matters for a query.

    Attributes:
        id: Its id: the position in train, unless a `tracin.WithIds` has others.
        position: Its position in train.
        score: Its influence; positive lowered the query's loss.
        by_checkpoint: Each checkpoint's share of the score; each run's, of a mean over runs.
        error: One standard deviation of an estimated score, or of a mean over runs; 0 where it is
            exact.
        places: Of a mean over runs: its best and its worst place in a single run's list.
        label: The label in the data, a class or a number; None where that is unknown.
        predicted: The class that the last checkpoint predicts, or its number; None as above.
        loss: Its loss at the last checkpoint; None as above.
    """

    id: Any
    position: int
    score: float
    by_checkpoint: tuple[float, ...]
    error: float = 0.0
    places: tuple[int, int] | None = None
    label: int | float | None = None
    predicted: int | float | None = None
    loss: float | None = None


@final
@dataclass(frozen=True, eq=False, repr=False)
class TopInfluences:
    """The strongest training examples for each query, strongest first.

    Attributes:
        ids: [queries, k].
        positions: [queries, k], in train.
        scores: [queries, k].
        by_checkpoint: [queries, k, checkpoints]; sums to the scores.
        errors: [queries, k]: one standard deviation of each score, where it is estimated from
            sketched gradients, or is a mean over runs; None where scores are exact.
        bounds: [queries]: where candidates alone were scored exactly, what no other example's score
            is expected to exceed (of opponents: to fall below); infinite where all were candidates.
        sure: [queries, k]: whether a score is beyond the bound, so that this result and those
            before it are the strongest of all; None where all was scored, or that is unknown.
        places: [queries, k, 2]: of a mean over runs, the best and the worst place, from 1, that an
            example has in a single run's list; None elsewhere.
        facts: [queries, k]: labels, predictions and losses; None where they are unknown.
    """

    ids: np.ndarray
    positions: np.ndarray
    scores: Tensor
    by_checkpoint: Tensor
    errors: Tensor | None = None
    bounds: Tensor | None = None
    sure: Tensor | None = None
    places: Tensor | None = None
    facts: ExampleFacts | None = None

    def __repr__(self) -> str:
        queries, k = self.ids.shape
        return f"TopInfluences({many(k, 'example')} for each of {many(queries, 'query')})"

    @property
    def is_certain(self) -> Tensor | None:
        """Whether these are the strongest of all: [queries]; None where that is unknown."""
        return None if self.sure is None else self.sure.all(1)

    def cut(self, k: int) -> "TopInfluences":
        """The first k of each query."""
        errors = None if self.errors is None else self.errors[:, :k]
        return TopInfluences(
            self.ids[:, :k],
            self.positions[:, :k],
            self.scores[:, :k],
            self.by_checkpoint[:, :k],
            errors,
            self.bounds,
            None if self.sure is None else self.sure[:, :k],
            None if self.places is None else self.places[:, :k],
            facts=None if self.facts is None else self.facts.at((slice(None), slice(k))),
        )

    @classmethod
    def joined(cls, parts: Sequence["TopInfluences"]) -> "TopInfluences":
        """Those of several sets of queries, one after the other."""

        def all_of(name: str) -> Tensor | None:
            found = [getattr(each, name) for each in parts]
            return None if any(one is None for one in found) else torch.cat(found)

        return cls(
            np.concatenate([each.ids for each in parts]),
            np.concatenate([each.positions for each in parts]),
            torch.cat([each.scores for each in parts]),
            torch.cat([each.by_checkpoint for each in parts]),
            *(all_of(name) for name in ("errors", "bounds", "sure", "places")),
            facts=ExampleFacts.joined([each.facts for each in parts]),
        )

    def with_facts(self, facts: ExampleFacts | None) -> "TopInfluences":
        """The same, with what is known of all training examples: [train]."""
        if facts is None:
            return self
        return replace(self, facts=facts.at(torch.from_numpy(self.positions)))

    def rows(self, queries: slice) -> "TopInfluences":
        """Those of some queries."""
        # Tensors know no negative steps.
        chosen = torch.tensor(range(len(self.ids))[queries], dtype=torch.int64)
        options = self.errors, self.bounds, self.sure, self.places
        return TopInfluences(
            self.ids[queries],
            self.positions[queries],
            self.scores[chosen],
            self.by_checkpoint[chosen],
            *(None if each is None else each[chosen] for each in options),
            facts=None if self.facts is None else self.facts.at(chosen),
        )

    def of(self, query: int) -> list[Influence]:
        """One query's results, strongest first."""
        scores, shares = self.scores[query].tolist(), self.by_checkpoint[query].tolist()
        errors = [0.0] * len(scores) if self.errors is None else self.errors[query].tolist()
        places = [None] * len(scores) if self.places is None else self.places[query].tolist()
        facts = None if self.facts is None else self.facts.at(query)
        known = [{} if facts is None else facts.row(at) for at in range(len(scores))]
        return [
            Influence(
                self.ids[query, at],
                int(self.positions[query, at]),
                score,
                tuple(each),
                error,
                None if among is None else (among[0], among[1]),
                fact.get("label"),
                fact.get("predicted"),
                fact.get("loss"),
            )
            for at, (score, each, error, among, fact) in enumerate(
                zip(scores, shares, errors, places, known, strict=True)
            )
        ]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Printed):
    """What explains one query. Printing it gives a table.

    Attributes:
        id: The query's id.
        proponents: The strongest first.
        opponents: The strongest first.
        label: The query's label in the data; None where that is unknown.
        predicted: The class that the last checkpoint predicts for it, or its number.
        loss: Its loss at the last checkpoint.
        class_names: The classes' names, by class; empty where there are none.
    """

    id: Any
    proponents: list[Influence]
    opponents: list[Influence]
    label: int | float | None = None
    predicted: int | float | None = None
    loss: float | None = None
    class_names: tuple[str, ...] = ()

    def __str__(self) -> str:
        both = [("proponent", one) for one in self.proponents]
        both += [("opponent", one) for one in self.opponents]
        head = ["kind", "id", "score"]
        rows: list[list[Any]] = [[kind, one.id, one.score] for kind, one in both]
        if any(one.error for _, one in both):  # exact scores have none to show
            head.append("error")
            rows = [[*row, one.error] for row, (_, one) in zip(rows, both, strict=True)]
        if any(one.places for _, one in both):
            head.append("places in single runs")
            rows = [
                [*row, f"{one.places[0]} to {one.places[1]}" if one.places else ""]
                for row, (_, one) in zip(rows, both, strict=True)
            ]
        for name in ("label", "predicted", "loss"):
            values = [getattr(one, name) for _, one in both]
            if any(value is not None for value in values):
                head.append(name)
                read = [value if name == "loss" else self.read(value) for value in values]
                rows = [[*row, value] for row, value in zip(rows, read, strict=True)]
        return f"query {plain(self.id)}{self.query_in_words}\n{aligned(head, rows)}"

    @property
    def query_in_words(self) -> str:
        """What is known of the query, such as ", label 3, predicted 5, loss 2.1"."""
        facts = {
            "label": self.read(self.label),
            "predicted": self.read(self.predicted),
            "loss": self.loss,
        }
        known = [f"{name} {cell(one)}" for name, one in facts.items() if one is not None]
        return "".join(f", {each}" for each in known)

    def read(self, label: int | float | None) -> Any:
        """A label as it is read: the name of the class, where there are names."""
        if isinstance(label, int) and 0 <= label < len(self.class_names):
            return self.class_names[label]
        return label


@final
@dataclass(frozen=True, eq=False, repr=False)
class ShownExplanation(Printed):
    """What explains one query, with what the examples are. Printing it gives a table.

    Attributes:
        explanation: The influences.
        query: The query; None where its data was not given.
        proponents: What each proponent is.
        opponents: What each opponent is.
    """

    explanation: Explanation
    query: Shown | None
    proponents: list[Shown]
    opponents: list[Shown]

    def __str__(self) -> str:
        sides = {
            "proponent": (self.explanation.proponents, self.proponents),
            "opponent": (self.explanation.opponents, self.opponents),
        }
        both = [
            (kind, one, shortened(str(shown), SHOWN))
            for kind, (influences, shown_ones) in sides.items()
            for one, shown in zip(influences, shown_ones, strict=True)
        ]
        head = ["kind", "id", "score"]
        rows: list[list[Any]] = [[kind, one.id, one.score] for kind, one, _ in both]
        if any(one.loss is not None for _, one, _ in both):
            read = self.explanation.read
            head += ["predicted", "loss"]
            facts = [(read(one.predicted), one.loss) for _, one, _ in both]
            rows = [[*row, *fact] for row, fact in zip(rows, facts, strict=True)]
        rows = [[*row, shown] for row, (_, _, shown) in zip(rows, both, strict=True)]
        query = f"query {plain(self.explanation.id)}"
        if self.query is not None:
            query += f": {shortened(str(self.query), SHOWN)}"
        return f"{query}\n{aligned([*head, 'example'], rows)}"


@final
@dataclass(frozen=True, eq=False, repr=False)
class Explanations(Tabular):
    """The strongest proponents and opponents of each query.

    polars, pandas and pyarrow take it as it is: `polars.DataFrame(explanations)`.

    Attributes:
        query_ids: [queries].
        proponents: The training examples that lowered each query's loss most.
        opponents: Those that raised it most, or lowered it least.
        checkpoints: The checkpoints' names, in the order of `by_checkpoint`; of a mean over runs
            the runs'.
        recall: Of an index's estimates: the share of the strongest that they find, measured on a
            sample; None where it was not measured, or all was scored.
        notes: What else to know about the result; printed below it.
        query_facts: [queries]: the queries' labels, predictions and losses; None where they are
            unknown.
        class_names: The classes' names, by class, as the model's `config.id2label` has them; empty
            where there are none.
        target: What is explained, in words; None for the queries' loss. Proponents raised a target,
            and opponents lowered it.
        left_out: [queries]: the share of each query's gradient that `tracin.LowRank` leaves out;
            None where queries are exact.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> weights = {"weight": torch.zeros(1, 1)}
        >>> run = tracin.TracIn(model, "mse", [weights], learning_rates=[0.5])
        >>> train = torch.ones(3, 1), torch.tensor([1.0, 2.0, -1.0])
        >>> print(run.explain(train, (torch.ones(1, 1), torch.ones(1)), k=1)[0])
        query 0, label 1, predicted 0, loss 1
        kind       id  score  label  predicted  loss
        proponent   1      4      2          0     4
        opponent    2     -2     -1          0     1
    """

    query_ids: np.ndarray
    proponents: TopInfluences
    opponents: TopInfluences
    checkpoints: tuple[str, ...]
    recall: Recall | None = None
    notes: tuple[str, ...] = ()
    query_facts: ExampleFacts | None = None
    class_names: tuple[str, ...] = ()
    target: str | None = None
    left_out: Tensor | None = None

    def __len__(self) -> int:
        return len(self.query_ids)

    @overload
    def __getitem__(self, query: int) -> Explanation: ...
    @overload
    def __getitem__(self, query: slice) -> "Explanations": ...
    @overload
    def __getitem__(self, query: str) -> np.ndarray: ...
    def __getitem__(self, query: int | slice | str) -> "Explanation | Explanations | np.ndarray":
        """What explains one query, or some of them; or a column of the table by its name."""
        if isinstance(query, str):
            columns = self.columns()
            one_of(query, columns, "A column of explanations", QueryError)
            return columns[query]
        if isinstance(query, slice):
            sides = (side.rows(query) for side in (self.proponents, self.opponents))
            proponents, opponents = sides
            chosen = torch.tensor(range(len(self))[query], dtype=torch.int64)
            return replace(
                self,
                query_ids=self.query_ids[query],
                proponents=proponents,
                opponents=opponents,
                query_facts=None if self.query_facts is None else self.query_facts.at(chosen),
                left_out=None if self.left_out is None else self.left_out[chosen],
            )
        at = range(len(self))[query]
        known = {} if self.query_facts is None else self.query_facts.row(at)
        return Explanation(
            self.query_ids[at],
            self.proponents.of(at),
            self.opponents.of(at),
            known.get("label"),
            known.get("predicted"),
            known.get("loss"),
            self.class_names,
        )

    def __iter__(self) -> Iterator[Explanation]:
        return (self[query] for query in range(len(self)))

    def __str__(self) -> str:
        tables = [str(explanation) for explanation in self]
        below = [*self._certainty(), *map(plain, self.notes)]
        if self.target is not None:
            below.insert(0, f"explained: {plain(self.target)}, raised by proponents")
        return "\n\n".join([*tables, "\n".join(below)] if below else tables)

    def head(self, n: int = 5) -> "Explanations":
        """Those of the first n queries; all, if there are fewer."""
        return self[: max(0, n)]

    def top(self, k: int | None = None) -> TopInfluences:
        """The k strongest proponents of each query; None for all that were kept.

        Raises:
            QueryError: More were not kept.
        """
        return self.proponents.cut(self._held(k))

    def bottom(self, k: int | None = None) -> TopInfluences:
        """The k strongest opponents of each query; None for all that were kept.

        Raises:
            QueryError: More were not kept.
        """
        return self.opponents.cut(self._held(k))

    def show(
        self,
        train: Any,
        queries: Any = None,
        *,
        labels: ClassNames | None = None,
        show: Callable[[Any], Shown | str] | None = None,
        decode: Callable[[list[int]], str] | None = None,
    ) -> list[ShownExplanation]:
        """Each query with what its proponents and opponents are: text, label, columns, picture.

        Args:
            train: The training data that was explained by.
            queries: The data of the queries; None for their ids alone.
            labels: The classes' names, by class; None for `class_names`.
            show: Makes a `tracin.Shown` (or a text) of an example; None goes by its type.
            decode: Makes a text of a list of token ids, such as `tokenizer.decode`.

        Raises:
            DataError: `train` is not the data that these explanations are about.

        Example:
            >>> import torch, tracin
            >>> model = torch.nn.Linear(1, 1, bias=False)
            >>> weights = {"weight": torch.zeros(1, 1)}
            >>> run = tracin.TracIn(model, "mse", [weights], learning_rates=[0.5])
            >>> train = torch.ones(3, 1), torch.tensor([1.0, 2.0, -1.0])
            >>> query = torch.ones(1, 1), torch.ones(1)
            >>> print(run.explain(train, query, k=1).show(train, query)[0])
            query 0: [1] 1
            kind       id  score  predicted  loss  example
            proponent   1      4          0     4  [2] 1
            opponent    2     -2          0     1  [-1] 1
        """
        how = Showing(labels if labels is not None else self.class_names or None, decode, show)
        asked: list[Shown | None] = [None] * len(self)
        if queries is not None:
            asked = shown_queries(queries, self.query_ids.tolist(), how)
        k = self.proponents.ids.shape[1]
        sides = (self.proponents, self.opponents)
        positions = np.concatenate([side.positions.reshape(-1) for side in sides]).tolist()
        ids = np.concatenate([side.ids.reshape(-1) for side in sides]).tolist()
        rows = shown_rows(train, positions, ids, how)
        half = len(self) * k
        named = self if labels is None else replace(self, class_names=tuple(map(str, labels)))
        return [
            ShownExplanation(
                named[at], asked[at], rows[at * k : (at + 1) * k],
                rows[half + at * k : half + (at + 1) * k],
            )
            for at in range(len(self))
        ]  # fmt: skip

    def columns(self) -> dict[str, np.ndarray]:
        """One row per result: query, kind, rank, id, position, score, each checkpoint's share.

        Checkpoints of one name get a number: "best", "best (2)".
        Estimates of an index also have "error". Its exact scores have "bound" and "is_certain":
        whether the results down to this one are the strongest of all. A mean over runs has "error",
        "best place" and "worst place". Where they are known, the examples' "label", "predicted" and
        "loss" follow, and the queries' "query label", "query predicted" and "query loss": classes
        as numbers.
        """
        queries, k = self.proponents.ids.shape
        sides = (self.proponents, self.opponents)
        shares = np.concatenate(
            [numbers(side.by_checkpoint).reshape(queries * k, -1) for side in sides]
        )
        columns = {
            "query": np.tile(np.repeat(self.query_ids, k), 2),
            "kind": np.repeat(np.array(["proponent", "opponent"]), queries * k),
            "rank": np.tile(np.arange(1, k + 1), 2 * queries),
            "id": np.concatenate([side.ids.reshape(-1) for side in sides]),
            "position": np.concatenate([side.positions.reshape(-1) for side in sides]),
            "score": np.concatenate([numbers(side.scores).reshape(-1) for side in sides]),
        }
        errors = [side.errors for side in sides if side.errors is not None]
        if len(errors) == len(sides):
            columns["error"] = np.concatenate([numbers(each).reshape(-1) for each in errors])
        bounds = [side.bounds for side in sides if side.bounds is not None]
        sure = [side.sure for side in sides if side.sure is not None]
        if len(bounds) == len(sure) == len(sides):
            columns["bound"] = np.concatenate([np.repeat(numbers(each), k) for each in bounds])
            columns["is_certain"] = np.concatenate([numbers(each).reshape(-1) for each in sure])
        places = [side.places for side in sides if side.places is not None]
        if len(places) == len(sides):
            best, worst = numbers(torch.cat([each.reshape(-1, 2) for each in places])).T
            columns |= {"best place": best, "worst place": worst}
        facts = [side.facts for side in sides if side.facts is not None]
        joined = ExampleFacts.joined(facts) if len(facts) == len(sides) else None
        if joined is not None:
            columns |= {n: numbers(each).reshape(-1) for n, each in joined.named().items()}
        if self.query_facts is not None:
            for name, each in self.query_facts.named().items():
                columns[f"query {name}"] = np.tile(np.repeat(numbers(each), k), 2)
        for at, name in enumerate(distinct(self.checkpoints)):
            columns[f"score at {name}"] = shares[:, at]
        return columns

    def _certainty(self) -> list[str]:
        """In words, where it is known."""
        of_proponents, of_opponents = self.proponents.is_certain, self.opponents.is_certain
        if of_proponents is None or of_opponents is None:
            return []
        k, queries = self.proponents.ids.shape[1], len(self)
        return [
            f"proponents: top {k} certain for {int(of_proponents.sum())} of {queries} queries",
            f"opponents: top {k} certain for {int(of_opponents.sum())} of {queries} queries",
        ]

    def _held(self, k: int | None) -> int:
        most = self.proponents.ids.shape[1]
        if k is None:
            return most
        count = int(k) if isinstance(k, np.integer) else k
        available = f"{most} were kept per query"
        way_out = ", or explain again with a larger k"
        return count_within(count, most, available, QueryError, way_out=way_out)
