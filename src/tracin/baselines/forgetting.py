"""How often training forgot an example: from right to wrong, one checkpoint to the next."""

from dataclasses import dataclass
from typing import Any, final

import torch

from tracin.baselines.baseline import check_run
from tracin.baselines.forward import class_steps
from tracin.baselines.suspect_scores import SuspectScores
from tracin.errors import QueryError
from tracin.guards import guarded
from tracin.run import Run, open_data
from tracin.scoring.batch_size import BatchSize


@final
@dataclass(frozen=True, eq=False)
class Forgetting:
    """How often each example went from right to wrong; most of all those never right.

    M. Toneva, A. Sordoni, R. Tachet des Combes, A. Trischler, Y. Bengio and G. J. Gordon, "An
    empirical study of example forgetting", 2019, https://arxiv.org/abs/1812.05159. An example that
    was never right has the number of checkpoints as its score, more than any count. They look
    whenever an example is trained on, once per epoch; so this counts what they count where the run
    has a checkpoint of each epoch, as `tracin.Recorder` writes by default, but for looking at its
    end, in eval mode. Of fewer checkpoints the count is a lower bound.

    Args:
        run: The model, a loss that knows classes, and at least two checkpoints, which are taken in
            the order of their steps, or as they were given where these are not known.

    Raises:
        QueryError: There is no run, or it has one checkpoint.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import Forgetting
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> states = [{"weight": torch.tensor([[0.0], [value]])} for value in (1.0, -1.0, -2.0)]
        >>> run = tracin.TracIn(model, "cross_entropy", states, learning_rates="equal")
        >>> train = torch.tensor([[1.0], [1.0]]), torch.tensor([1, 0])
        >>> Forgetting(run).scores(train).values
        array([1., 0.])
    """

    run: Run

    def __post_init__(self) -> None:
        check_run(self.run, "Forgetting")
        if len(self.run.checkpoints) < 2:
            raise QueryError(
                "Forgetting compares each checkpoint with the one before, so it needs at least "
                "two, best one per epoch; this run has 1. tracin.Recorder writes one per epoch."
            )

    @guarded
    def scores(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> SuspectScores:
        """One count per example: [train]; high values are suspect.

        Args:
            train: The labelled examples.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            LossError: The loss knows no classes, or an example has several labels.
            NonFiniteError: A loss is NaN or infinite; names example and checkpoint.
        """
        examples = open_data(self.run, train, "train")
        was_right = torch.zeros(len(examples), dtype=torch.bool)
        is_learnt = torch.zeros(len(examples), dtype=torch.bool)
        forgotten = torch.zeros(len(examples), dtype=torch.float64)
        order = _in_order(self.run)
        for step in class_steps(self.run, examples, order, "Forgetting", batch_size, progress):
            outcome = step.outcome
            is_right = (outcome.logits.argmax(1) == outcome.labels).cpu()
            forgotten[step.rows] += was_right[step.rows] & ~is_right
            was_right[step.rows] = is_right
            is_learnt[step.rows] |= is_right
        forgotten[~is_learnt] = len(order)
        return SuspectScores("Forgetting", examples.ids, forgotten.numpy())


def _in_order(run: Run) -> list[int]:
    steps = [one.step for one in run.checkpoints]
    order = list(range(len(steps)))
    if all(step is not None for step in steps):
        order.sort(key=lambda at: steps[at] or 0)
    return order
