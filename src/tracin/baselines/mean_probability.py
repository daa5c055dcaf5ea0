"""How little a model believes the label."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from tracin.baselines.averages import ClassAverage
from tracin.losses import Outcome
from tracin.scoring.label_scores import probabilities_of


@final
@dataclass(frozen=True, eq=False)
class MeanProbability(ClassAverage):
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

    @staticmethod
    def of(outcome: Outcome) -> Tensor:
        """The number at one checkpoint: [examples]."""
        probabilities = probabilities_of(outcome)
        at = outcome.labels.to(probabilities.device)[:, None]
        return 1 - probabilities.gather(1, at)[:, 0]
