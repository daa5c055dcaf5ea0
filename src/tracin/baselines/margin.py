"""How far the label's probability is behind the best other one."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from tracin.baselines.averages import ClassAverage
from tracin.losses import Outcome
from tracin.scoring.label_scores import lead_of_label, probabilities_of


@final
@dataclass(frozen=True, eq=False)
class Margin(ClassAverage):
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

    @staticmethod
    def of(outcome: Outcome) -> Tensor:
        """The number at one checkpoint: [examples]."""
        return -lead_of_label(probabilities_of(outcome), outcome.labels)
