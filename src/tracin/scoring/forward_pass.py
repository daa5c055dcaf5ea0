"""Forward passes over data at some checkpoints, without gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tracin.data import Examples, Size, length, move, places
from tracin.gradients.compute import checked_losses
from tracin.progress import bar
from tracin.scoring.batch_size import fitting_size
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.finite import refuse_non_finite
from tracin.scoring.named_examples import examples_named
from tracin.scoring.read_ahead import ReadAhead


@final
@dataclass(frozen=True, eq=False)
class ForwardStep:
    """What one batch gave at one checkpoint.

    Attributes:
        checkpoint: The checkpoint's place in the run.
        positions: The examples' positions in the data.
        losses: [examples].
        outcome: What the loss returned: the losses, or an `Outcome` with class scores.
    """

    checkpoint: int
    positions: Sequence[int]
    losses: Tensor
    outcome: Any

    @property
    def rows(self) -> slice | Tensor:
        """Where the examples are in a tensor of all."""
        return places(self.positions)


def forward_pass(
    walk: CheckpointPass,
    examples: Examples,
    checkpoints: Sequence[int],
    what: str,
    batch_size: Size | None,
    progress: bool | None,
) -> Iterator[ForwardStep]:
    """Every batch at every checkpoint.

    Args:
        walk: The model, its loss and its checkpoints.
        examples: What to read.
        checkpoints: Their places in the run, in the order of reading.
        what: The word in front of the progress bar.
        batch_size: Examples or tokens per model call; None for as many examples as fit.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        NonFiniteError: A loss is NaN or infinite; names example and checkpoint.
        LossError: The loss gives no value per example.
    """
    gradients = walk.gradients
    following = [*checkpoints[1:], walk.checkpoints]
    with bar(len(checkpoints) * len(examples), what, progress) as shown, ReadAhead() as ahead:
        for number, after in zip(checkpoints, following, strict=False):
            with walk.at(number, ahead) as device:
                if batch_size is None:
                    few = move(examples.few(range(min(2, len(examples)))), device)
                    with examples_named(examples, range(length(few)), few):
                        batch_size = fitting_size(gradients, few, device)
                for positions, batch in examples.batches(batch_size):
                    with torch.no_grad(), examples_named(examples, positions, batch):
                        outcome = gradients.compute(gradients.model, move(batch, device))
                        losses = checked_losses(outcome, len(positions)).detach()
                    name = walk.names[number]
                    refuse_non_finite(losses, positions, examples.ids, name, "loss", "example")
                    yield ForwardStep(number, positions, losses, outcome)
                    shown.update(len(positions))
                    walk.read_next(after, ahead, device)
