"""The length of an example's gradient: GraNd."""

from dataclasses import dataclass
from typing import Any, final

import torch

from tracin.baselines.baseline import check_run
from tracin.baselines.gradient_rows import plain_pass
from tracin.baselines.suspect_scores import SuspectScores
from tracin.guards import guarded
from tracin.run import Run, open_data
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.scoring.score_request import ScoreRequest
from tracin.scoring.settled import settled


@final
@dataclass(frozen=True, eq=False)
class GraNd:
    """The length of each example's gradient, its mean over the run's checkpoints. Any loss will do.

    M. Paul, S. Ganguli and G. K. Dziugaite, "Deep learning on a data diet", 2021,
    https://arxiv.org/abs/2107.07075. They take early checkpoints and the mean over several runs.
    Self-influence is the sum of the squared lengths, weighted by the learning rates.

    Args:
        run: The model, its loss, its checkpoints, and the parameters whose gradients count.

    Raises:
        QueryError: There is no run.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import GraNd
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> states = [{"weight": torch.full((1, 1), value)} for value in (0.0, 1.0)]
        >>> run = tracin.TracIn(model, "mse", states, learning_rates="equal")
        >>> GraNd(run).scores((torch.ones(2, 1), torch.tensor([1.0, 3.0]))).values
        array([1., 5.])
    """

    run: Run

    def __post_init__(self) -> None:
        check_run(self.run, "GraNd")

    @guarded
    @settled
    def scores(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> SuspectScores:
        """The mean length of each example's gradient: [train].

        Args:
            train: The training examples.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            NonFiniteError: A loss or gradient is NaN or infinite; names example and checkpoint.
            CoupledExamplesError: An example's loss depends on the rest of its batch.
        """
        examples = open_data(self.run, train, "train")
        total = torch.zeros(len(examples), dtype=torch.float64)
        size, request = checked_size(batch_size), ScoreRequest(norms=True)
        span = range(len(examples))
        for step in plain_pass(self.run).steps(examples, span, request, size, progress, "GraNd"):
            if step.norms is None:
                raise RuntimeError("the pass was asked for lengths; a bug in tracin")
            rows = step.rows
            total[rows] += step.norms.cpu().double().clamp(min=0).sqrt()
        return SuspectScores("GraNd", examples.ids, (total / len(self.run.checkpoints)).numpy())
