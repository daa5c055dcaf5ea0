"""How little a model believes the label."""

from dataclasses import dataclass
from typing import Any, final

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
class MeanProbability:
    """One minus the probability of the given label, its mean over the run's checkpoints.

    Args:
        run: The model, a loss that knows classes such as "cross_entropy", and the checkpoints.

    Raises:
        QueryError: There is no run.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import MeanProbability
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> states = [{"weight": torch.tensor([[0.0], [value]])} for value in (0.0, 1.0)]
        >>> run = tracin.TracIn(model, "cross_entropy", states, learning_rates="equal")
        >>> MeanProbability(run).scores((torch.ones(2, 1), torch.tensor([0, 1]))).values.round(3)
        array([0.616, 0.384])
    """

    run: Run

    def __post_init__(self) -> None:
        check_run(self.run, "MeanProbability")

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
        return mean_over_checkpoints(
            self.run, train, "MeanProbability", _disbelief, batch_size, progress
        )


def _disbelief(outcome: Outcome) -> Tensor:
    probabilities = probabilities_of(outcome)
    at = outcome.labels.to(probabilities.device)[:, None]
    return 1 - probabilities.gather(1, at)[:, 0]
