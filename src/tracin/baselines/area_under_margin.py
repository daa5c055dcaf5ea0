"""The margin of the class scores over training: AUM."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from tracin.baselines.averages import ClassAverage
from tracin.losses import Outcome
from tracin.precision import in_double
from tracin.scoring.label_scores import lead_of_label


@final
@dataclass(frozen=True, eq=False)
class AreaUnderMargin(ClassAverage):
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

    @staticmethod
    def of(outcome: Outcome) -> Tensor:
        """The number at one checkpoint: [examples]."""
        return -lead_of_label(in_double(outcome.logits.detach()), outcome.labels)
