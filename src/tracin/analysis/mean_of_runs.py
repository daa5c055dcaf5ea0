"""Scores averaged over independent trainings, and how far single trainings are apart."""

import math
from collections.abc import Iterable
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.analysis.asked_of_runs import asked_of_runs
from tracin.baselines.baseline import HasInfluence
from tracin.checks import count_within
from tracin.data import Examples, open_examples
from tracin.errors import QueryError
from tracin.plain_text import a_kind
from tracin.precision import in_double
from tracin.results.explanations import Explanations, TopInfluences
from tracin.run import HELD
from tracin.scoring.batch_size import BatchSize
from tracin.scoring.targets import Target
from tracin.scoring.top_k import top_k


def mean(runs: Iterable[HasInfluence]) -> "MeanOfRuns":
    """Ask several independently trained runs one question, and average their scores.

    A single training has the luck of its initial weights and of its order of examples; what would
    happen in *another* training, which is what a person wants to know, is predicted better by the
    mean over a few. Each question costs what it costs for every run. Source of the idea: Søgaard
    et al., 2021, https://arxiv.org/abs/2111.04683; ensembles in TRAK, Park et al., 2023,
    https://arxiv.org/abs/2303.14186.

    Args:
        runs: Two or more `tracin.TracIn`, of trainings with other seeds on the same data; or
            baselines that explain queries.

    Raises:
        QueryError: There are fewer than two, one is no run, one comes twice, or they are of several
            kinds or have other preconditioners or dampings, so that scores have no common unit.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> runs = [
        ...     tracin.TracIn(model, "mse", [{"weight": torch.tensor([[w]])}], learning_rates=[0.5])
        ...     for w in (0.0, 0.5)
        ... ]
        >>> train = torch.ones(3, 1), torch.tensor([1.0, 2.0, -1.0])
        >>> print(tracin.mean(runs).explain(train, (torch.ones(1, 1), torch.ones(1)), k=1)[0])
        query 0
        kind       id  score  error  places in single runs
        proponent   1   2.75   1.25  1 to 1
        opponent    2  -1.75   0.25  1 to 1
    """
    return MeanOfRuns(runs)


@final
class MeanOfRuns:
    """Several runs that answer as one; made by `tracin.mean`, which see.

    Attributes:
        runs: In the order given.
    """

    def __init__(self, runs: Iterable[HasInfluence]) -> None:
        self.runs = _checked(runs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.runs)} runs)"

    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        target: Target | None = None,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """The mean influence of every training example on every query: [train, queries].

        Args:
            train: As `TracIn.influence` takes it.
            queries: The same kinds of data.
            target: What proponents raise, as `TracIn.explain` takes it; None is for the queries'
                loss. A class that it leaves open is the one that the runs predict together: that
                of the largest mean probability at their last checkpoints.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            QueryError: The target is none, or a run is a baseline, which knows no targets.
            TracInError: As from each run's own `influence`.
        """
        examples, given = _opened(train, queries)
        asked = asked_of_runs(self.runs, given, target, batch_size, progress)
        total = torch.zeros(len(examples), len(given), dtype=torch.float64)
        for run, wanted in zip(self.runs, asked.targets, strict=True):
            total += _scores(run, examples, asked.queries, wanted, batch_size, progress)
        return total / len(self.runs)

    def self_influence(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> Tensor:
        """The mean of each example's influence on itself: [train].

        Args:
            train: As `TracIn.self_influence` takes it.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            QueryError: A run is a baseline without self-influence.
            TracInError: As from each run's own `self_influence`.
        """
        examples = open_examples(train, name="train")
        total = torch.zeros(len(examples), dtype=torch.float64)
        for at, run in enumerate(self.runs):
            ask = getattr(run, "self_influence", None)
            if ask is None:
                raise QueryError(
                    f"self_influence needs runs that have one, such as tracin.TracIn; run {at} is "
                    f"{a_kind(run)}."
                )
            total += in_double(ask(examples, batch_size=batch_size, progress=progress)).cpu()
        return total / len(self.runs)

    def explain(
        self,
        train: Any,
        queries: Any,
        k: int = 10,
        *,
        target: Target | None = None,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Explanations:
        """The k strongest proponents and opponents of each query, by the mean over runs.

        Every run's scores of some queries are held together, as many as fit into 512 MB; training
        data is passed over once per run for each such lot of queries.

        Args:
            train: The examples to choose from.
            queries: The examples whose loss is explained.
            k: How many of each.
            target: As `influence` takes it.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Returns:
            Explanations whose `by_checkpoint` are the runs' shares, and `checkpoints` the runs.
            `errors` are standard errors of the mean over runs, and `places` the best and the worst
            place of each example in the list of a single run: wide where a run's list says more
            about its seed than about the data.

        Raises:
            QueryError: k is below 1 or larger than the number of examples, or as from
                `influence`.
            TracInError: As from each run's own `influence`.
        """
        examples, given = _opened(train, queries)
        k = count_within(k, len(examples), f"train holds {len(examples)} examples", QueryError)
        asked = asked_of_runs(self.runs, given, target, batch_size, progress)
        query_set = asked.queries
        step = max(1, HELD // (len(self.runs) * len(examples)))
        sides: list[list[TopInfluences]] = [[], []]
        for start in range(0, len(query_set), step):
            some = query_set.subset(range(start, min(start + step, len(query_set))))
            scores = torch.stack(
                [
                    _scores(run, examples, some, wanted, batch_size, progress).T
                    for run, wanted in zip(self.runs, asked.targets, strict=True)
                ]
            )  # [runs, queries, train]
            for side, sign in zip(sides, (1, -1), strict=True):
                side.append(_strongest(scores, k, sign, examples.ids))
        proponents, opponents = (TopInfluences.joined(side) for side in sides)
        names = tuple(f"run {at}" for at in range(len(self.runs)))
        return Explanations(query_set.ids, proponents, opponents, names, target=asked.name)


def _checked(runs: Any) -> tuple[HasInfluence, ...]:
    if not isinstance(runs, Iterable):
        raise QueryError(f"tracin.mean takes a list of runs; {a_kind(runs)} was given.")
    given = tuple(runs)
    if len(given) < 2:
        raise QueryError(
            f"A mean is over two runs or more, of trainings with other seeds; {len(given)} came."
        )
    for at, run in enumerate(given):
        if not hasattr(run, "influence") or hasattr(run, "projection"):
            raise QueryError(
                "tracin.mean takes runs, tracin.TracIn(model, loss, checkpoints), or baselines "
                f"that explain queries; number {at} is {a_kind(run)}."
            )
        if any(run is other for other in given[:at]):
            raise QueryError(
                f"Run {at} is in the list twice. Give trainings with other seeds: one that counts "
                "twice makes the mean look surer than it is."
            )
    kinds = sorted({_unit(run) for run in given})
    if len(kinds) > 1:
        raise QueryError(
            "The runs are of several kinds, so that their scores have no common unit and the "
            f"largest would decide: {', '.join(kinds)}. Give all the same preconditioner and "
            "damping, or take the mean of one kind alone."
        )
    return given


def _unit(run: HasInfluence) -> str:
    """What the unit of a run's scores depends on, in words."""
    under = getattr(run, "preconditioner", None)
    if under is None:
        return type(run).__name__
    damping = getattr(under, "damping", None)
    own = "" if damping is None else f"damping={damping:g}"
    return f"{type(run).__name__} under {type(under).__name__}({own})"


def _opened(train: Any, queries: Any) -> tuple[Examples, Examples]:
    return open_examples(train, name="train"), open_examples(queries, name="queries")


def _scores(
    run: HasInfluence,
    train: Examples,
    queries: Examples,
    target: Target | None,
    size: BatchSize,
    progress: bool | None,
) -> Tensor:
    ask: Any = run.influence  # a baseline's takes no target
    options = {} if target is None else {"target": target}
    return in_double(ask(train, queries, batch_size=size, progress=progress, **options)).cpu()


def _strongest(scores: Tensor, k: int, sign: int, ids: np.ndarray) -> TopInfluences:
    """The k strongest by the mean: of scores [runs, queries, train]."""
    runs = len(scores)
    average = scores.mean(0)
    best, positions = top_k(average, k, largest=sign > 0)
    chosen = scores.gather(2, positions.expand(runs, -1, -1))  # [runs, queries, k]
    # An example's place is one more than how many have a better score.
    ordered = (-sign * scores).sort(2).values
    places = torch.searchsorted(ordered, (-sign * chosen).contiguous()) + 1
    return TopInfluences(
        ids[positions.numpy()],
        positions.numpy(),
        best,
        chosen.movedim(0, 2) / runs,
        errors=chosen.std(0) / math.sqrt(runs),
        places=torch.stack([places.amin(0), places.amax(0)], 2),
    )
