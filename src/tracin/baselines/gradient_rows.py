"""Per-example gradients at one checkpoint: written out, or multiplied with given vectors."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tracin.data import Batch, Examples, Size
from tracin.gradients.forms import Dense, PerExampleGradient, pairs, real_shape
from tracin.run import HELD, Run
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.finite import refuse_non_finite

Read = tuple[Sequence[int], Tensor]
"""The positions of a batch's examples, and a row of numbers for each."""


def plain_pass(run: Run) -> CheckpointPass:
    """A pass whose gradients have no weight and no preconditioner."""
    weights = [1.0] * len(run.checkpoints)
    return CheckpointPass(
        run.model,
        run.loss,
        run.parameters,
        run.checkpoints,
        weights,
        run.device,
        None,
        run.methods,
    )


def places_of_parameters(walk: CheckpointPass) -> dict[str, slice]:
    """Where each parameter's numbers are in a vector of all traced ones."""
    places, start = {}, 0
    for name, parameter in walk.gradients.parameters.items():
        stop = start + real_shape(parameter).numel()
        places[name] = slice(start, stop)
        start = stop
    return places


def written_gradients(
    walk: CheckpointPass,
    examples: Examples,
    span: range,
    device: torch.device,
    batch_size: Size | None,
    checkpoint: str,
    whose: str = "example",
) -> Iterator[Read]:
    """The gradients of a span, batch by batch: positions and [examples, numbers].

    Args:
        walk: With the checkpoint in place, by `at`.
        examples: The data.
        span: Which of them.
        device: What `at` gave.
        batch_size: Examples per batch at most, or None; batches are cut to what memory holds.
        checkpoint: Its name, for errors.
        whose: What the examples are, for errors.

    Raises:
        NonFiniteError: A loss or a gradient is NaN or infinite.
    """
    places = places_of_parameters(walk)
    width = max(place.stop for place in places.values())
    kind = next(iter(walk.gradients.parameters.values())).dtype.to_real()
    reader = walk.reader(examples, span, batch_size, device)
    reader.limit(HELD // (8 * width))

    def read(positions: Sequence[int], batch: Batch, is_last: bool) -> Read:
        rows = torch.zeros(len(positions), width, dtype=kind, device=device)

        def visit(name: str, form: PerExampleGradient, row: int) -> None:
            rows[row : row + form.examples, places[name]] += form.dense().to(kind)

        result = walk.gradients.visit(batch, visit, is_last=is_last)
        _check(result.losses, rows, positions, examples, checkpoint, whose)
        return positions, rows

    yield from reader.read(read)


def products_with(
    walk: CheckpointPass,
    examples: Examples,
    vectors: Tensor,
    device: torch.device,
    batch_size: Size | None,
    checkpoint: str,
) -> Iterator[Read]:
    """Each example's gradient times each vector, batch by batch: [examples, vectors], float64.

    Args:
        walk: With the checkpoint in place, by `at`.
        examples: The data.
        vectors: [vectors, numbers].
        device: What `at` gave.
        batch_size: Examples per batch, or None.
        checkpoint: Its name, for errors.

    Raises:
        NonFiniteError: A loss or a gradient is NaN or infinite.
    """
    by_name = {
        name: Dense(
            vectors[:, place].to(device, walk.gradients.parameters[name].dtype).contiguous()
        )
        for name, place in places_of_parameters(walk).items()
    }
    reader = walk.reader(examples, range(len(examples)), batch_size, device)

    def read(positions: Sequence[int], batch: Batch, is_last: bool) -> Read:
        total = torch.zeros(len(positions), len(vectors), dtype=torch.float64)

        def visit(name: str, form: PerExampleGradient, row: int) -> None:
            total[row : row + form.examples] += pairs(form, by_name[name]).cpu().double()

        result = walk.gradients.visit(batch, visit, is_last=is_last)
        _check(result.losses, total, positions, examples, checkpoint, "example")
        return positions, total

    yield from reader.read(read)


def _check(
    losses: Tensor,
    values: Tensor,
    positions: Sequence[int],
    examples: Examples,
    checkpoint: str,
    whose: str,
) -> None:
    for each, what in ((losses.detach(), "loss"), (values, "gradient")):
        refuse_non_finite(each, positions, examples.ids, checkpoint, what, whose)
