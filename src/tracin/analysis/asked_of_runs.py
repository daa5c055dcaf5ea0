"""What several runs are asked about: the same target, of the same class, for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.baselines.baseline import HasInfluence
from tracin.data import Examples, Size
from tracin.errors import QueryError
from tracin.guards import guarded
from tracin.plain_text import a_kind
from tracin.precision import in_double
from tracin.run import Run, judging_pass
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.scoring.forward_pass import forward_pass
from tracin.scoring.query_loss import ForClasses, class_scores, query_loss
from tracin.scoring.targets import ClassTarget, Target


@final
@dataclass(frozen=True)
class AskedOfRuns:
    """What is explained by several runs.

    Attributes:
        queries: The queries; with a class each, where the runs have to agree on one.
        targets: What each run is asked for; None for its loss.
        name: The target in words; None for the queries' loss.
    """

    queries: Examples
    targets: Sequence[Target | None]
    name: str | None = None


def asked_of_runs(
    runs: Sequence[HasInfluence],
    queries: Examples,
    target: Target | None,
    batch_size: BatchSize,
    progress: bool | None,
) -> AskedOfRuns:
    """The queries, and what each run is asked about them.

    A class that the target leaves open is the one with the largest mean probability, over the
    runs' last checkpoints: scores of different classes have no mean.

    Raises:
        QueryError: The target is none, a run is a baseline, or the runs know different classes.
        LossError: The target is about classes, and a run's loss tells none.
    """
    if target is None:
        return AskedOfRuns(queries, [None] * len(runs))
    traced: list[Run] = []
    for at, run in enumerate(runs):
        if not isinstance(run, Run):
            raise QueryError(
                f"target= is for runs, tracin.TracIn(model, loss, checkpoints); run {at} is "
                f"{a_kind(run)}, which explains the queries' loss alone."
            )
        traced.append(run)
    outcomes = [getattr(run.loss, "outcome", None) for run in traced]
    names = [
        query_loss(outcome, run.loss, target).name
        for outcome, run in zip(outcomes, traced, strict=True)
    ]
    if not isinstance(target, ClassTarget) or target.label is not None:
        return AskedOfRuns(queries, [target] * len(runs), names[0])
    classes = _classes(traced, queries, target, batch_size, progress)
    own = [ForClasses(outcome, target) for outcome in outcomes if outcome is not None]
    return AskedOfRuns(queries.with_column(classes), own, names[0])


def _classes(
    runs: Sequence[Run],
    queries: Examples,
    target: ClassTarget,
    batch_size: BatchSize,
    progress: bool | None,
) -> Tensor:
    """The class that the runs predict together: [queries]."""
    total: Tensor | None = None
    for at, run in enumerate(runs):
        each = _probabilities(run, queries, target, checked_size(batch_size), progress)
        if total is not None and total.shape != each.shape:
            raise QueryError(
                f"Run {at} scores {each.shape[1]} classes, and those before it {total.shape[1]}, "
                f"so that they predict none together. Give runs of one model, or name the class: "
                "tracin.Logit(3)."
            )
        total = each if total is None else total + each
    if total is None:
        raise RuntimeError("no runs; a bug in tracin")
    return total.argmax(1)


@guarded
def _probabilities(
    run: Run, queries: Examples, target: ClassTarget, size: Size | None, progress: bool | None
) -> Tensor:
    """The probabilities of classes at a run's last checkpoint: [queries, classes]."""
    walk = judging_pass(run)
    last = walk.checkpoints - 1
    steps = forward_pass(walk, queries, [last], "predictions", size, progress)
    return torch.cat(
        [in_double(class_scores(step.outcome, target)).softmax(1).cpu() for step in steps]
    )
