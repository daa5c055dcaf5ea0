"""What of a query is explained in place of its loss: what the model says of a class.

Training examples are scored by what they did to a number per query. `target=` names it: one of the
classes here, or any function of a model and a batch. A target is what proponents raise. Its
negative takes the place of the query's loss, so that the signs of all scores mean what they mean
without one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F


@final
@dataclass(frozen=True)
class Predicted:
    """The log-probability of the class that the model predicts at the last checkpoint.

    The same class counts at every checkpoint. It is minus the cross-entropy that the query would
    have if that class were its label: proponents of a wrong prediction are what misled the model.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> weights = {"weight": torch.tensor([[1.0], [0.0]])}
        >>> run = tracin.TracIn(model, "cross_entropy", [weights], learning_rates=[1.0])
        >>> train = torch.ones(2, 1), torch.tensor([0, 1])
        >>> query = torch.ones(1, 1), torch.tensor([1])
        >>> run.influence(train, query, target=tracin.Predicted()).T
        tensor([[ 0.1447, -0.3932]])
    """

    @property
    def label(self) -> None:
        """None: the class that the model predicts."""
        return None

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The number per example, [examples], of [examples, classes] and a class each."""
        return -F.cross_entropy(logits, labels, reduction="none")


@final
@dataclass(frozen=True)
class Logit:
    """The logit of a class: the model's output before the softmax.

    Attributes:
        label: The class; None for the one that the model predicts at the last checkpoint.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> weights = {"weight": torch.zeros(2, 1)}
        >>> run = tracin.TracIn(model, "cross_entropy", [weights], learning_rates=[1.0])
        >>> train = torch.ones(2, 1), torch.tensor([0, 1])
        >>> query = torch.ones(1, 1), torch.tensor([0])
        >>> run.influence(train, query, target=tracin.Logit(1)).T
        tensor([[-0.5000,  0.5000]])
    """

    label: int | None = None

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The number per example, [examples], of [examples, classes] and a class each."""
        return logits.gather(1, labels[:, None])[:, 0]


@final
@dataclass(frozen=True)
class LogitMargin:
    """How far the logit of a class is above the largest other one, at each checkpoint.

    Attributes:
        label: The class; None for the one that the model predicts at the last checkpoint.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> weights = {"weight": torch.zeros(2, 1)}
        >>> run = tracin.TracIn(model, "cross_entropy", [weights], learning_rates=[1.0])
        >>> train = torch.ones(2, 1), torch.tensor([0, 1])
        >>> query = torch.ones(1, 1), torch.tensor([0])
        >>> run.influence(train, query, target=tracin.LogitMargin(1)).T
        tensor([[-1.,  1.]])
    """

    label: int | None = None

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The number per example, [examples], of [examples, classes] and a class each."""
        at = labels[:, None]
        # Out of place: the logits belong to the user's graph.
        others = torch.scatter(logits, 1, at, -torch.inf)
        return logits.gather(1, at)[:, 0] - others.amax(1)


ClassTarget = Predicted | Logit | LogitMargin

Target = ClassTarget | Callable[[Module, Any], Tensor]
"""One of these, or target(model, batch), which returns one value per query: [queries]."""
