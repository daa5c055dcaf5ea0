"""Which checkpoints: a few that stand for a whole training."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, final

import numpy as np

from tracin.checkpoints import Checkpoint, checkpoint_weights, open_checkpoints
from tracin.checkpoints.discover import Checkpoints
from tracin.checks import is_int, one_of
from tracin.errors import CheckpointWarning, LearningRateError, QueryError
from tracin.plain_text import listed
from tracin.printed import Printed
from tracin.results.table import aligned

By: TypeAlias = Literal["even", "middle", "loss_drop", "equal_drop", "log", "quadratic"]
Weighting: TypeAlias = Literal["span", "lr", "equal"]
Weight: TypeAlias = float | dict[str, float]

WAYS = ("even", "middle", "loss_drop", "equal_drop", "log", "quadratic")
BY_LOSS = ("loss_drop", "equal_drop")
WEIGHTINGS = ("span", "lr", "equal")

HOW_TO_GET_LOSSES = (
    "Record them while training (recorder.epoch(loss=...)), compute them once "
    "(losses=tracin.training_losses(run, train)), or give losses=[...], one a checkpoint"
)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Selection(Printed):
    """Some checkpoints of a training, and how much each weighs. Printing it gives a table.

    `tracin.TracIn(model, loss, selection.checkpoints, learning_rates=selection.weights)` takes it
    as it is.

    Attributes:
        checkpoints: The chosen, in the order of training.
        weights: One for each.
        by: How they were chosen.
        weighting: What the weights are.
        among: All those that they were chosen from, in the order of training.
        positions: Where the chosen are in `among`.
        losses: The mean training loss at each of `among`, or None where it is not known.
    """

    checkpoints: list[Checkpoint]
    weights: list[Weight]
    by: str
    weighting: str
    among: list[Checkpoint]
    positions: tuple[int, ...]
    losses: tuple[float, ...] | None

    def __len__(self) -> int:
        return len(self.checkpoints)

    @property
    def steps(self) -> tuple[int | None, ...]:
        """The optimizer steps before each of the chosen, where known."""
        return tuple(checkpoint.step for checkpoint in self.checkpoints)

    def columns(self) -> dict[str, np.ndarray]:
        """One row a chosen checkpoint: its name, step, loss, drop of the loss, weight.

        The drop is that since the checkpoint before it in `among`. What is not known is NaN; of
        weights that differ between parameters the largest is shown.
        """
        losses, drops = np.full((2, len(self)), np.nan)
        if self.losses is not None:
            losses[:] = [self.losses[at] for at in self.positions]
            drops[:] = [
                self.losses[at - 1] - self.losses[at] if at else math.nan for at in self.positions
            ]
        return {
            "checkpoint": np.array([one.name for one in self.checkpoints], dtype=object),
            "step": np.array([math.nan if step is None else step for step in self.steps]),
            "loss": losses,
            "drop": drops,
            "weight": np.array([largest(weight) for weight in self.weights]),
        }

    def __str__(self) -> str:
        rows = [
            ["-" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row]
            for row in zip(*(column.tolist() for column in self.columns().values()), strict=True)
        ]
        about = f"{len(self)} of {len(self.among)} checkpoints by {self.by}, {self.weighting}"
        return f"{about} weights\n{aligned(list(self.columns()), rows)}"


def select_checkpoints(
    checkpoints: Checkpoints,
    budget: int,
    *,
    by: By = "log",
    losses: Iterable[float] | None = None,
    warm_up: int = 1,
    weights: Weighting = "span",
) -> Selection:
    """Choose a few checkpoints that stand for all of a training.

    A score costs one pass over the data for each checkpoint, so fewer are cheaper. Most learning
    happens early: checkpoints close together there, each weighted by the steps that it stands for
    (by="log", weights="span"), come closest to the influence added up over all steps, query by
    query; with fewer than five, "quadratic" is the safer choice. By equal weights, "middle" does
    better than "even" for the same number, and "loss_drop" does well query by query and badly
    pooled. `experiments/approximations.py` measures all of this on MNIST; for a task of your
    own there is `compare_selections`.

    Args:
        checkpoints: Those of one training run, of any kind that `tracin.open_checkpoints` takes.
            They are put in the order of their steps; where these are not known, the given order
            counts as even spacing.
        budget: How many to choose.
        by: Where to put them, each spacing counted in steps:

            - "even": at the ends of equal stretches of the training, as in the paper.
            - "middle": in the middle of equal stretches.
            - "log": each a fixed number of times as late as the one before, from the first
              checkpoint to the last; a single one halfway in that sense.
            - "quadratic": in the middle of stretches of equal length in the root of the step.
            - "loss_drop": the largest reductions of the loss since the checkpoint before.
            - "equal_drop": in the middle of stretches over which the loss drops equally.
        losses: The mean training loss at each checkpoint, in the order of `checkpoints`; None for
            those that a Recorder noted.
        warm_up: How many first checkpoints "loss_drop" and "equal_drop" leave aside, while the
            loss still fluctuates; at least 1, since the first has no loss before it.
        weights: "span" (the rates of all steps that each of the chosen stands for), "lr" (the
            rate recorded with each) or "equal".

    Raises:
        QueryError: The budget, the way, the losses or warm_up cannot be, or losses are lacking.
        LearningRateError: The weights need a step log, or a rate, that is not there.
        CheckpointError: A checkpoint cannot be read.

    Example:
        >>> import torch, tracin
        >>> states = [{"weight": torch.full((1, 1), float(epoch))} for epoch in range(1, 9)]
        >>> print(tracin.select_checkpoints(states, 3, by="log", weights="equal"))
        3 of 8 checkpoints by log, equal weights
        checkpoint    step  loss  drop  weight
        checkpoint 0  -     -     -          1
        checkpoint 2  -     -     -          1
        checkpoint 7  -     -     -          1
    """
    one_of(by, WAYS, "by", QueryError)
    one_of(weights, WEIGHTINGS, "weights", QueryError)
    found = open_checkpoints(checkpoints)
    refuse_several_runs(found)
    order = list(range(len(found)))
    if all(one.step is not None for one in found):
        order.sort(key=lambda at: found[at].step or 0)
    among = [found[at] for at in order]
    curve = curve_of(found, losses, is_needed=by in BY_LOSS)
    if curve is not None:
        curve = tuple(curve[at] for at in order)
    left = len(among) - (checked_warm_up(warm_up, len(among)) if by in BY_LOSS else 0)
    if not is_int(budget, 1, left):
        aside = f", of which warm_up leaves {warm_up} aside" if left < len(among) else ""
        raise QueryError(
            f"budget is how many checkpoints to choose, a whole number from 1 to {left}: there "
            f"are {len(among)}{aside}. {budget!r} was given."
        )
    if by == "loss_drop" and curve is not None:
        positions = largest_drops(curve, budget, warm_up)
    elif by == "equal_drop" and curve is not None:
        positions = equal_drops(curve, budget, warm_up)
    else:
        positions = spaced(places_of(among), budget, by)
    chosen = [among[at] for at in positions]
    return Selection(
        chosen, weights_of(chosen, weights), by, weights, among, tuple(positions), curve
    )


def refuse_several_runs(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse checkpoints of several trainings, whose steps and losses are not one curve."""
    runs = sorted({str(one.log.folder) for one in checkpoints if one.log is not None})
    if len(runs) > 1:
        raise QueryError(
            f"Checkpoints are chosen among those of one training, but these are of {len(runs)}: "
            f"{listed(runs)}. Choose for each, and join the lists of checkpoints and of weights."
        )


def curve_of(
    checkpoints: Sequence[Checkpoint], losses: Iterable[float] | None, *, is_needed: bool
) -> tuple[float, ...] | None:
    """The loss at each checkpoint, or None where it is not known and not needed."""
    if losses is None:
        noted = [one.loss for one in checkpoints]
        lacking = [one.name for one, loss in zip(checkpoints, noted, strict=True) if loss is None]
        if lacking and not is_needed:
            return None
        if lacking:
            raise QueryError(
                f"To choose by the loss, it must be known at each checkpoint; none is recorded "
                f"with {len(lacking)} of {len(checkpoints)}: {listed(lacking)}. "
                f'{HOW_TO_GET_LOSSES}; or choose by="log", which needs none.'
            )
        curve = tuple(float(loss) for loss in noted if loss is not None)
    else:
        curve = tuple(float(loss) for loss in losses)
    if len(curve) != len(checkpoints):
        raise QueryError(
            f"losses needs one for each of the {len(checkpoints)} checkpoints; {len(curve)} were "
            "given."
        )
    for one, loss in zip(checkpoints, curve, strict=True):
        if not math.isfinite(loss):
            raise QueryError(
                f"The loss at {one.name} is {loss}, from which nothing can drop. Leave that "
                "checkpoint out."
            )
    return curve


def checked_warm_up(warm_up: int, checkpoints: int) -> int:
    """How many checkpoints to leave aside.

    Raises:
        QueryError: None, or all.
    """
    if not is_int(warm_up, 1, checkpoints - 1):
        raise QueryError(
            "warm_up is how many first checkpoints are left aside: at least 1, since the first has "
            f"no loss before it, and fewer than there are, here {checkpoints}. {warm_up!r} was "
            'given; by="log" needs none.'
        )
    return warm_up


def places_of(checkpoints: Sequence[Checkpoint]) -> list[float]:
    """Where each checkpoint is in the training: its step, or its place in the list."""
    steps = [one.step for one in checkpoints]
    known = [float(step) for step in steps if step is not None]
    if len(known) == len(steps) and known[-1] > 0:
        return known
    return [float(at) for at in range(1, len(steps) + 1)]


def spaced(places: Sequence[float], budget: int, by: str) -> list[int]:
    """The places that lie best for a spacing."""
    end = places[-1]
    halves = [(at + 0.5) / budget for at in range(budget)]
    if by == "even":
        return nearest(places, [end * (at + 1) / budget for at in range(budget)])
    if by == "middle":
        return nearest(places, [end * half for half in halves])
    if by == "quadratic":
        return nearest([place**0.5 for place in places], [end**0.5 * half for half in halves])
    logs = [math.log(place) if place else -math.inf for place in places]
    first = min(log for log in logs if log > -math.inf)
    shares = [at / (budget - 1) for at in range(budget)] if budget > 1 else halves
    return nearest(logs, [first + (logs[-1] - first) * share for share in shares])


def nearest(places: Sequence[float], targets: Sequence[float]) -> list[int]:
    """For each target the nearest place that is not taken yet, the earlier of two equally near."""
    free = list(range(len(places)))
    taken = []
    for target in targets:
        # Rounded, so that what is equally near is so on every machine.
        away = [round(abs(places[at] - target), 9) for at in free]
        taken.append(free.pop(away.index(min(away))))
    return sorted(taken)


def largest_drops(curve: Sequence[float], budget: int, warm_up: int) -> list[int]:
    """Where the loss fell most since the checkpoint before; of equal drops the earlier."""
    drops = {at: before - after for at, (before, after) in enumerate(pairwise(curve), start=1)}
    allowed = [at for at in drops if at >= warm_up]
    return sorted(sorted(allowed, key=lambda at: -drops[at])[:budget])


def equal_drops(curve: Sequence[float], budget: int, warm_up: int) -> list[int]:
    """The checkpoints in the middle of equal shares of the drop after the warm-up."""
    lowest = np.minimum.accumulate(np.array(curve[warm_up - 1 :], dtype=np.float64))
    total = lowest[0] - lowest[-1]
    if total <= 0:
        raise QueryError(
            f"The loss never falls below the {curve[warm_up - 1]:.4g} that it has after the "
            f'warm-up of {warm_up}, so its drop cannot be shared. Choose by="log" or "even".'
        )
    # What is gained back after a rise was learnt before: only a new low counts, the rest is far.
    is_low = lowest[1:] < lowest[:-1]
    fallen = np.where(is_low, (lowest[0] - lowest[1:]) / total, -np.inf).tolist()
    targets = [(at + 0.5) / budget for at in range(budget)]
    return [warm_up + at for at in nearest(fallen, targets)]


def weights_of(checkpoints: Sequence[Checkpoint], weighting: str) -> list[Weight]:
    """The weights of the chosen."""
    if weighting == "equal":
        return checkpoint_weights(checkpoints, "equal")
    if weighting == "lr":
        return checkpoint_weights(checkpoints, None)
    lacking = [one.name for one in checkpoints if one.log is None or one.step is None]
    if lacking:
        raise LearningRateError(
            'weights="span" adds up the rates of the steps that each checkpoint stands for, which '
            f"only the step log of a tracin.Recorder has; there is none for {listed(lacking)}. "
            'Give weights="lr" for the recorded rates or "equal"; these fit by="even" and '
            '"middle", where all stand for as many steps.'
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        try:
            return checkpoint_weights(checkpoints, "span")
        except CheckpointWarning as warning:
            raise LearningRateError(
                f"{warning} Choose fewer, or leave the checkpoint before the first step out of "
                "`checkpoints`."
            ) from None


def largest(weight: Weight) -> float:
    """A weight as one number."""
    return max(weight.values()) if isinstance(weight, dict) else weight
