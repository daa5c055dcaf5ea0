"""Means over a run's checkpoints of a number that each forward pass gives."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tracin.baselines.forward import class_steps
from tracin.baselines.suspect_scores import SuspectScores
from tracin.losses import Outcome
from tracin.precision import in_double
from tracin.run import Run, open_data
from tracin.scoring.batch_size import BatchSize


def mean_over_checkpoints(
    run: Run,
    train: Any,
    name: str,
    score: Callable[[Outcome], Tensor],
    batch_size: BatchSize,
    progress: bool | None,
) -> SuspectScores:
    """The mean over the run's checkpoints, each counted alike, of `score(outcome)`: [examples]."""
    examples = open_data(run, train, "train")
    total = torch.zeros(len(examples), dtype=torch.float64)
    numbers = range(len(run.checkpoints))
    for step in class_steps(run, examples, numbers, name, batch_size, progress):
        total[step.rows] += score(step.outcome).cpu().double()
    return SuspectScores(name, examples.ids, (total / len(run.checkpoints)).numpy())


def probabilities_of(outcome: Outcome) -> Tensor:
    """The softmax of the class scores: [examples, classes], float64."""
    return in_double(outcome.logits.detach()).softmax(1)


def lead_of_label(values: Tensor, labels: Tensor) -> Tensor:
    """The label's value minus the largest other: [examples].

    Args:
        values: [examples, classes].
        labels: [examples].
    """
    at = labels.to(values.device)[:, None]
    return values.gather(1, at)[:, 0] - values.scatter(1, at, -torch.inf).amax(1)
