"""Forward passes over data at some checkpoints: what the baselines without gradients read."""

from collections.abc import Iterator, Sequence
from typing import Any

from tracin.data import Examples
from tracin.errors import LossError
from tracin.gradients.compute import Compute
from tracin.run import Run, computing_pass
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.scoring.forward_pass import ForwardStep, forward_pass


def forward_steps(
    run: Run,
    examples: Examples,
    checkpoints: Sequence[int],
    compute: Compute,
    what: str,
    batch_size: BatchSize,
    progress: bool | None,
) -> Iterator[ForwardStep]:
    """Every batch at every checkpoint, without gradients.

    Args:
        run: The model and its checkpoints.
        examples: What to read.
        checkpoints: Their places in the run, in the order of reading.
        compute: The run's loss, or its `outcome`.
        what: The word in front of the progress bar.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        NonFiniteError: A loss is NaN or infinite; names example and checkpoint.
        LossError: The loss gives no value per example.
    """
    walk = computing_pass(run, compute)
    return forward_pass(walk, examples, checkpoints, what, checked_size(batch_size), progress)


def class_steps(
    run: Run,
    examples: Examples,
    checkpoints: Sequence[int],
    name: str,
    batch_size: BatchSize,
    progress: bool | None,
) -> Iterator[ForwardStep]:
    """As `forward_steps`, where each outcome has class scores [examples, classes] and labels.

    Args:
        run: The model and its checkpoints.
        examples: What to read.
        checkpoints: Their places in the run, in the order of reading.
        name: The baseline, for errors.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        LossError: The loss knows no classes, or an example has more than one label.
    """
    compute = outcome_of(run, name)
    for step in forward_steps(run, examples, checkpoints, compute, name, batch_size, progress):
        check_classes(step.outcome, name)
        yield step


def outcome_of(run: Run, name: str) -> Compute:
    """The run's loss in the form that also gives class scores.

    Raises:
        LossError: It has no such form.
    """
    outcome = getattr(run.loss, "outcome", None)
    if outcome is None:
        raise _without_classes(name)
    return outcome


def _without_classes(name: str) -> LossError:
    return LossError(
        f"{name} compares the scores of classes, and this loss gives none. Use "
        'loss="cross_entropy", or give your loss a method outcome(model, batch) -> '
        "tracin.losses.Outcome. For regression there are Loss, GraNd and InfluenceFunctions."
    )


def check_classes(outcome: Any, name: str) -> None:
    """Refuse outcomes without one label per example and at least two classes.

    Raises:
        LossError: They are such.
    """
    if not hasattr(outcome, "logits"):
        raise _without_classes(name)
    shape = tuple(outcome.logits.shape)
    if len(shape) != 2 or shape[1] < 2 or outcome.labels.ndim != 1:
        raise LossError(
            f"{name} judges one label per example, from scores of shape [examples, classes] with "
            f"at least two classes; the scores have shape {shape}."
        )
    labels = outcome.labels
    is_class = (labels >= 0) & (labels < shape[1])
    if labels.is_floating_point() or len(labels) != shape[0] or not bool(is_class.all()):
        wrong = labels[~is_class][:1].tolist()
        raise LossError(
            f"{name} judges one label per example, a class from 0 to {shape[1] - 1}; the loss's "
            f"outcome has {len(labels)} of {labels.dtype} for {shape[0]} examples"
            + (f", one of them {wrong[0]}" if wrong else "")
            + ". Leave examples without a class out."
        )
