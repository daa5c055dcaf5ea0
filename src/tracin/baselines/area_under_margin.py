"""The margin of the class scores over training: AUM."""

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from tracin.baselines.averages import lead_of_label, mean_over_checkpoints
from tracin.baselines.baseline import check_run
from tracin.baselines.suspect_scores import SuspectScores
from tracin.guards import guarded
from tracin.losses import Outcome
from tracin.precision import in_double
from tracin.run import Run
from tracin.scoring.batch_size import BatchSize


@final
@dataclass(frozen=True, eq=False)
class AreaUnderMargin:
    """Minus the area under the margin: the largest other class score minus the label's, averaged.

    G. Pleiss, T. Zhang, E. Elenberg and K. Q. Weinberger, "Identifying mislabeled data using the
    area under the margin ranking", 2020, https://arxiv.org/abs/2001.10528. They average over all
    epochs of training, so this is theirs where the run has a checkpoint of each epoch, as
    `tracin.Recorder` writes by default; of fewer it is an estimate. They read the scores during
    the epoch, in train mode and under augmentation; here they are those at the checkpoint, in eval
    mode. Their threshold samples need a training of their own and are left out.

    Args:
        run: The model, a loss that knows classes such as "cross_entropy", and the checkpoints.

    Raises:
        QueryError: There is no run.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import AreaUnderMargin
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> states = [{"weight": torch.tensor([[0.0], [value]])} for value in (0.0, 1.0)]
        >>> run = tracin.TracIn(model, "cross_entropy", states, learning_rates="equal")
        >>> AreaUnderMargin(run).scores((torch.ones(2, 1), torch.tensor([0, 1]))).values.round(3)
        array([ 0.5, -0.5])
    """

    run: Run

    def __post_init__(self) -> None:
        check_run(self.run, "AreaUnderMargin")

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
            self.run, train, "AreaUnderMargin", _behind_in_scores, batch_size, progress
        )


def _behind_in_scores(outcome: Outcome) -> Tensor:
    return -lead_of_label(in_double(outcome.logits.detach()), outcome.labels)
