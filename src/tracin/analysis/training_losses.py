"""The loss curve of a training, from its checkpoints."""

from typing import Any

import torch
from torch import Tensor

from tracin.checkpoints import loaded
from tracin.data import content_of, length, move, places
from tracin.gradients.compute import checked_losses
from tracin.gradients.wording import worded
from tracin.guards import guarded, untouched
from tracin.progress import bar
from tracin.run import Run, checkpoint_pass, open_data
from tracin.scoring.batch_size import BatchSize, checked_size, fitting_size
from tracin.scoring.finite import refuse_non_finite
from tracin.scoring.named_examples import examples_named


@guarded
def checkpoint_losses(
    run: Run, data: Any, batch_size: BatchSize = "auto", progress: bool | None = None
) -> Tensor:
    """The loss of every example at each of a run's checkpoints; forward passes alone.

    Args:
        run: Whose model, loss and checkpoints.
        data: The examples, such as the queries of `explained_share`.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.

    Returns:
        [checkpoints, examples], float64.

    Raises:
        NonFiniteError: A loss is NaN or infinite; names example and checkpoint.

    Example:
        >>> import torch, tracin
        >>> from tracin.analysis import checkpoint_losses
        >>> states = [{"weight": torch.full((1, 1), float(value))} for value in (0, 1)]
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> run = tracin.TracIn(model, "mse", states, learning_rates="equal")
        >>> losses = checkpoint_losses(run, (torch.ones(2, 1), torch.tensor([1.0, 3.0])))
        >>> losses
        tensor([[1., 9.],
                [0., 4.]], dtype=torch.float64)
        >>> losses[0] - losses[-1]  # how much each loss dropped
        tensor([1., 5.], dtype=torch.float64)
    """
    examples = open_data(run, data, "data")
    size = checked_size(batch_size)
    gradients = checkpoint_pass(run).gradients
    found = torch.zeros(len(run.checkpoints), len(examples), dtype=torch.float64)
    with bar(len(run.checkpoints) * len(examples), "losses", progress) as shown:
        for at, checkpoint in enumerate(run.checkpoints):
            with untouched(run.model), loaded(run.model, checkpoint, run.device):
                device = next(iter(run.model.parameters())).device
                if size is None:
                    few = move(examples.few(range(min(2, len(examples)))), device)
                    with examples_named(examples, range(length(few)), few):
                        size = fitting_size(gradients, few, device)
                for positions, batch in examples.batches(size):
                    with torch.no_grad(), examples_named(examples, positions, batch):
                        losses = worded(run.loss)(run.model, content_of(move(batch, device)))
                        losses = checked_losses(losses, len(positions)).detach()
                    refuse_non_finite(
                        losses, positions, examples.ids, checkpoint.name, "loss", "example"
                    )
                    found[at, places(positions)] = losses.cpu().double()
                    shown.update(len(positions))
    return found


def training_losses(
    run: Run, train: Any, batch_size: BatchSize = "auto", progress: bool | None = None
) -> list[float]:
    """The mean loss of `train` at each of a run's checkpoints; forward passes alone.

    For `select_checkpoints`, where no loss was recorded; a part of the data is enough to see the
    curve's shape.

    Args:
        run: Whose model, loss and checkpoints.
        train: The examples.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        NonFiniteError: A loss is NaN or infinite; names example and checkpoint.

    Example:
        >>> import torch, tracin
        >>> states = [{"weight": torch.full((1, 1), float(value))} for value in (0, 1)]
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> run = tracin.TracIn(model, "mse", states, learning_rates="equal")
        >>> tracin.training_losses(run, (torch.ones(2, 1), torch.tensor([1.0, 3.0])))
        [5.0, 2.0]
    """
    examples = open_data(run, train, "train")
    return checkpoint_losses(run, examples, batch_size, progress).mean(1).tolist()
