"""How far the label's probability is behind the best other one."""

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from tracin.baselines.averages import lead_of_label, mean_over_checkpoints, probabilities_of
from tracin.baselines.baseline import check_run
from tracin.baselines.suspect_scores import SuspectScores
from tracin.guards import guarded
from tracin.losses import Outcome
from tracin.run import Run
from tracin.scoring.batch_size import BatchSize


@final
@dataclass(frozen=True, eq=False)
class Margin:
    """The largest other probability minus the label's, its mean over the run's checkpoints.

    From -1, sure of the label, to 1, sure of another. `AreaUnderMargin` does the same with the
    scores before the softmax.

    Args:
        run: The model, a loss that knows classes such as "cross_entropy", and the checkpoints.

    Raises:
        QueryError: There is no run.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import Margin
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> states = [{"weight": torch.tensor([[0.0], [value]])} for value in (0.0, 1.0)]
        >>> run = tracin.TracIn(model, "cross_entropy", states, learning_rates="equal")
        >>> Margin(run).scores((torch.ones(2, 1), torch.tensor([0, 1]))).values.round(3)
        array([ 0.231, -0.231])
    """

    run: Run

    def __post_init__(self) -> None:
        check_run(self.run, "Margin")

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
        return mean_over_checkpoints(self.run, train, "Margin", _behind, batch_size, progress)


def _behind(outcome: Outcome) -> Tensor:
    return -lead_of_label(probabilities_of(outcome), outcome.labels)
