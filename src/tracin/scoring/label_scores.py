"""What class scores say of a label, in float64: probabilities, its lead, the error's length."""

import torch
from torch import Tensor

from tracin.losses import Outcome
from tracin.precision import in_double


def probabilities_of(outcome: Outcome) -> Tensor:
    """The softmax of the class scores: [examples, classes], float64."""
    return in_double(outcome.logits.detach()).softmax(1)


def lead_of_label(values: Tensor, labels: Tensor) -> Tensor:
    """The label's value minus the largest other: [examples].

    Args:
        values: [examples, classes].
        labels: [examples].

    Example:
        >>> lead_of_label(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([1]))
        tensor([-0.2500])
    """
    at = labels.to(values.device)[:, None]
    return values.gather(1, at)[:, 0] - values.scatter(1, at, -torch.inf).amax(1)


def error_length(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The length of (probabilities - one-hot label), EL2N: [examples].

    M. Paul, S. Ganguli and G. K. Dziugaite, "Deep learning on a data diet", 2021,
    https://arxiv.org/abs/2107.07075.

    Args:
        probabilities: [examples, classes].
        labels: [examples].

    Example:
        >>> error_length(torch.tensor([[0.25, 0.75]]), torch.tensor([0]))
        tensor([1.0607])
    """
    at = labels.to(probabilities.device)[:, None]
    ones = torch.ones_like(at, dtype=probabilities.dtype)
    return probabilities.scatter_add(1, at, -ones).norm(dim=1)
