"""Nearest neighbours among the last layer's inputs: do examples that look alike agree?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.baselines.baseline import check_run, checkpoint_number
from tracin.baselines.last_layer import Features, features_of, last_linear
from tracin.baselines.suspect_scores import SuspectScores
from tracin.checks import positive_int
from tracin.data import open_examples
from tracin.errors import QueryError
from tracin.guards import guarded
from tracin.run import HELD, Run, open_data
from tracin.scoring.batch_size import BatchSize


@final
@dataclass(frozen=True, eq=False)
class NearestNeighbours:
    """How many of the nearest training examples have another label; influence is likeness.

    Likeness is the cosine of the inputs of the last layer, which is from -1 to 1. All features are
    held: examples x features x 8 bytes.

    Args:
        run: The model, a loss that knows classes such as "cross_entropy", and the checkpoints.
        k: The number of neighbours that count, the example itself left out.
        checkpoint: The place of the checkpoint in the run; the last by default.

    Raises:
        QueryError: There is no run or no such checkpoint, or k is no whole number of at least 1.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import NearestNeighbours
        >>> weights = {"weight": torch.eye(2)}
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> run = tracin.TracIn(model, "cross_entropy", [weights], learning_rates="equal")
        >>> inputs = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> labels = torch.tensor([0, 0, 1, 1, 1])
        >>> NearestNeighbours(run, k=1).scores((inputs, labels)).values
        array([0., 1., 1., 0., 0.])
    """

    run: Run
    k: int = 10
    checkpoint: int = -1

    def __post_init__(self) -> None:
        check_run(self.run, "NearestNeighbours")
        positive_int(self.k, "k", QueryError)
        checkpoint_number(self.run, self.checkpoint)

    @guarded
    def scores(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> SuspectScores:
        """The share of each example's neighbours with another label, by likeness: [train].

        A neighbour counts (1 + cosine) / 2, so that a near one says more than a far one.

        Args:
            train: The labelled examples, more than k.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            QueryError: There are not more than k examples.
            LossError: The loss knows no classes, or an example has several labels.
            UnsupportedModelError: The last layer is no `torch.nn.Linear`.
        """
        examples = open_data(self.run, train, "train")
        if len(examples) <= self.k:
            raise QueryError(
                f"k={self.k} neighbours of each example were asked for, but train holds "
                f"{len(examples)} examples, the example itself included. Give a smaller k."
            )
        found = self._features(examples, batch_size, progress)
        directions, labels = _directions(found), found.labels
        values = torch.zeros(len(examples), dtype=torch.float64)
        for rows in _blocks(len(examples), len(examples)):
            likeness = directions[rows] @ directions.mT
            own = torch.arange(rows.start, rows.stop)
            likeness[own - rows.start, own] = -torch.inf
            nearest = likeness.topk(self.k, dim=1)
            weights = (1 + nearest.values).clamp(min=0) / 2
            differs = labels[nearest.indices] != labels[rows, None]
            # Neighbours that are all opposite weigh nothing: each counts alike.
            weights[weights.sum(1) == 0] = 1.0
            values[rows] = (weights * differs).sum(1) / weights.sum(1)
        return SuspectScores("NearestNeighbours", examples.ids, values.numpy())

    @guarded
    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """How alike each example and each query are, from -1 to 1: [train, queries], float64.

        Labels do not count.

        Args:
            train: The training examples.
            queries: The examples to compare them with.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            LossError: The loss knows no classes, or an example has several labels.
            UnsupportedModelError: The last layer is no `torch.nn.Linear`.
        """
        sides = (
            open_data(self.run, train, "train"),
            open_examples(queries, name="queries"),
        )
        ours, theirs = (_directions(self._features(each, batch_size, progress)) for each in sides)
        return ours @ theirs.mT

    def _features(self, examples: Any, batch_size: BatchSize, progress: bool | None) -> Features:
        name, number = "NearestNeighbours", checkpoint_number(self.run, self.checkpoint)
        layer = last_linear(self.run, examples, name)
        return features_of(self.run, layer, examples, number, name, batch_size, progress)


def _directions(features: Features) -> Tensor:
    """Of length 1; features that are all zero are like nothing."""
    return F.normalize(features.inputs, dim=1, eps=1e-30)


def _blocks(examples: int, columns: int) -> Iterator[slice]:
    """Runs of rows whose products with all columns stay within bounds."""
    step = max(1, HELD // (4 * columns))
    for start in range(0, examples, step):
        yield slice(start, min(start + step, examples))
