"""Means over a run's checkpoints of a number that each forward pass gives."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracin.baselines.baseline import check_run
from tracin.baselines.forward import class_steps
from tracin.baselines.suspect_scores import SuspectScores
from tracin.guards import guarded
from tracin.losses import Outcome
from tracin.run import Run, open_data
from tracin.scoring.batch_size import BatchSize


@dataclass(frozen=True, eq=False)
class ClassAverage(ABC):
    """The mean over a run's checkpoints, each counted alike, of a number per example.

    Args:
        run: The model, a loss that knows classes such as "cross_entropy", and the checkpoints.

    Raises:
        QueryError: There is no run.
    """

    run: Run

    def __post_init__(self) -> None:
        check_run(self.run, type(self).__name__)

    @staticmethod
    @abstractmethod
    def of(outcome: Outcome) -> Tensor:
        """The number at one checkpoint, high where suspect: [examples]."""

    @guarded
    def scores(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> SuspectScores:
        """One number per example: [train]; high values are suspect.

        Args:
            train: The labelled examples.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            LossError: The loss knows no classes, or an example has several labels.
            NonFiniteError: A loss is NaN or infinite; names example and checkpoint.
        """
        name = type(self).__name__
        examples = open_data(self.run, train, "train")
        total = torch.zeros(len(examples), dtype=torch.float64)
        numbers = range(len(self.run.checkpoints))
        for step in class_steps(self.run, examples, numbers, name, batch_size, progress):
            total[step.rows] += self.of(step.outcome).cpu().double()
        return SuspectScores(name, examples.ids, (total / len(numbers)).numpy())
