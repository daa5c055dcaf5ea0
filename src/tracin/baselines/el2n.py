"""The length of the error of the probabilities: EL2N."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tracin.baselines.averages import mean_over_checkpoints, probabilities_of
from tracin.baselines.baseline import check_run
from tracin.baselines.suspect_scores import SuspectScores
from tracin.guards import guarded
from tracin.losses import Outcome
from tracin.run import Run
from tracin.scoring.batch_size import BatchSize


@final
@dataclass(frozen=True, eq=False)
class EL2N:
    """The length of (probabilities - one-hot label), its mean over the run's checkpoints.

    M. Paul, S. Ganguli and G. K. Dziugaite, "Deep learning on a data diet", 2021,
    https://arxiv.org/abs/2107.07075. They take early checkpoints of several runs.

    Args:
        run: The model, a loss that knows classes such as "cross_entropy", and the checkpoints.

    Raises:
        QueryError: There is no run.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import EL2N
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> states = [{"weight": torch.tensor([[0.0], [value]])} for value in (0.0, 1.0)]
        >>> run = tracin.TracIn(model, "cross_entropy", states, learning_rates="equal")
        >>> EL2N(run).scores((torch.ones(2, 1), torch.tensor([0, 1]))).values.round(3)
        array([0.87 , 0.544])
    """

    run: Run

    def __post_init__(self) -> None:
        check_run(self.run, "EL2N")

    @guarded
    def scores(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> SuspectScores:
        """One number per example: [train]; high values are suspect.

        Args:
            train: The labelled examples.
            batch_size: "auto", or how many examples go through the model at once.
            progress: None shows a bar on a terminal alone.

        Raises:
            LossError: The loss knows no classes, or an example has several labels.
            NonFiniteError: A loss is NaN or infinite; names example and checkpoint.
        """
        return mean_over_checkpoints(self.run, train, "EL2N", _error_length, batch_size, progress)


def _error_length(outcome: Outcome) -> Tensor:
    probabilities = probabilities_of(outcome)
    at = outcome.labels.to(probabilities.device)[:, None]
    ones = torch.ones_like(at, dtype=probabilities.dtype)
    return probabilities.scatter_add(1, at, -ones).norm(dim=1)
