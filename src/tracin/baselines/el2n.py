"""The length of the error of the probabilities: EL2N."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from tracin.baselines.averages import ClassAverage
from tracin.losses import Outcome
from tracin.scoring.label_scores import error_length, probabilities_of


@final
@dataclass(frozen=True, eq=False)
class EL2N(ClassAverage):
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

    @staticmethod
    def of(outcome: Outcome) -> Tensor:
        """The number at one checkpoint: [examples]."""
        return error_length(probabilities_of(outcome), outcome.labels)
