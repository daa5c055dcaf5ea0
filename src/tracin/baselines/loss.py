"""The loss itself: the plainest sign of a wrong label."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tracin.baselines.baseline import check_run
from tracin.baselines.forward import forward_steps
from tracin.baselines.suspect_scores import SuspectScores
from tracin.data import open_examples
from tracin.guards import guarded
from tracin.run import Run, open_data
from tracin.scoring.batch_size import BatchSize


@final
@dataclass(frozen=True, eq=False)
class Loss:
    """The mean loss of each example over the run's checkpoints. Any loss will do.

    For labels that are wrong at random it often finds as many as anything else does.

    Args:
        run: The model, its loss and its checkpoints; one checkpoint gives the loss there.

    Raises:
        QueryError: There is no run.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import Loss
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> states = [{"weight": torch.full((1, 1), value)} for value in (0.0, 1.0)]
        >>> run = tracin.TracIn(model, "mse", states, learning_rates="equal")
        >>> Loss(run).scores((torch.ones(2, 1), torch.tensor([1.0, 3.0]))).values
        array([0.5, 6.5])
    """

    run: Run

    def __post_init__(self) -> None:
        check_run(self.run, "Loss")

    @guarded
    def scores(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> SuspectScores:
        """The mean loss of each example: [train].

        Args:
            train: The training examples.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            NonFiniteError: A loss is NaN or infinite; names example and checkpoint.
        """
        examples = open_data(self.run, train, "train")
        total = torch.zeros(len(examples), dtype=torch.float64)
        numbers = range(len(self.run.checkpoints))
        for step in forward_steps(
            self.run, examples, numbers, self.run.loss, "Loss", batch_size, progress
        ):
            total[step.rows] += step.losses.cpu().double()
        return SuspectScores("Loss", examples.ids, (total / len(numbers)).numpy())

    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """The mean loss of each example, whatever the query: [train, queries], float64.

        What explains every query alike explains none: a floor for what measures report.

        Args:
            train: The training examples.
            queries: The queries.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            NonFiniteError: A loss is NaN or infinite; names example and checkpoint.
        """
        many = len(open_examples(queries, name="queries"))
        values = self.scores(train, batch_size=batch_size, progress=progress).values
        return torch.from_numpy(values)[:, None].repeat(1, many)
