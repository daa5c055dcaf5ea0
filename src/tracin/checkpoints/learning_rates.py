"""How much each checkpoint weighs: its learning rate, one for all, or the steps it stands for."""

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tracin.checkpoints.checkpoint import Checkpoint
from tracin.checkpoints.rate import Rate, number, valid_rate
from tracin.checkpoints.readers.hugging_face import logged_rate
from tracin.checkpoints.state_dict import bare_name
from tracin.checkpoints.step_log import StepLog
from tracin.errors import CheckpointWarning, LearningRateError
from tracin.plain_text import a_kind, first_few, listed

LearningRates: TypeAlias = Sequence[Rate] | Literal["equal", "span"] | None

ALLOWED = '"equal", "span", a list with one learning rate for each checkpoint, or None'


def checkpoint_weights(
    checkpoints: Sequence[Checkpoint], learning_rates: LearningRates = None
) -> list[float | dict[str, float]]:
    """The weight of each checkpoint's term in the score.

    - None: the learning rate recorded with each checkpoint (equation 1 of the paper).
    - A list: these, one for each checkpoint.
    - "equal": 1 for each.
    - "span": the sum of the learning rates of the steps that a checkpoint stands for, those
      nearer to it than to its neighbours. A step from w_t to w_{t+1} lies at t + 1/2, and one
      halfway between two checkpoints goes to the later: with a checkpoint after every step, each
      has the rate of the step before it, as in the paper. The spans are those of the checkpoints
      given here, so that a selection of a folder's checkpoints still covers the whole training;
      equal checkpoints share theirs.

    Returns:
        For each checkpoint a number, or a mapping from parameter name to number where the
        optimizer's groups differ (see `by_parameter`). A span may be empty, its weight 0: that
        is warned about.

    Raises:
        LearningRateError: A rate is missing, or is not a positive, finite number; the list has
            another length; there is no step log to take spans from; or the word is unknown.

    Warns:
        CheckpointWarning: Hugging Face's Trainer logged no rate in a checkpoint's own step, so that
            an earlier one counts; or a checkpoint's weight is 0.
    """
    if learning_rates is None:
        return recorded_rates(checkpoints)
    if isinstance(learning_rates, str):
        if learning_rates == "equal":
            return [1.0] * len(checkpoints)
        if learning_rates == "span":
            return spans(checkpoints)
        raise LearningRateError(f"learning_rates must be {ALLOWED}; {learning_rates!r} was given.")
    return given_rates(checkpoints, learning_rates)


def by_parameter(weight: Rate, names: Iterable[str]) -> dict[str, float]:
    """One checkpoint's weight for each of these parameters.

    Args:
        weight: One of the weights from `checkpoint_weights`.
        names: Parameter names, as `model.named_parameters()` gives them.

    Raises:
        LearningRateError: The weight is a mapping, and a parameter is not in it.

    Example:
        >>> by_parameter(0.1, ["fc.weight", "fc.bias"])
        {'fc.weight': 0.1, 'fc.bias': 0.1}
    """
    names = list(names)
    if not isinstance(weight, Mapping):
        return dict.fromkeys(names, float(weight))
    bare = {bare_name(name): rate for name, rate in weight.items()}
    missing = [name for name in names if name not in weight and bare_name(name) not in bare]
    if missing:
        raise LearningRateError(
            "A learning rate is needed for every parameter that is traced; none was given for "
            f"{listed(missing)}. Leave these out by `parameters`, or give their rates: "
            "tracin.Checkpoint(path, {name: learning_rate, ...})."
        )
    return {name: weight.get(name, bare.get(bare_name(name), 0.0)) for name in names}


def recorded_rates(checkpoints: Sequence[Checkpoint]) -> list[float | dict[str, float]]:
    """The rates that the checkpoints carry."""
    lacking = [checkpoint for checkpoint in checkpoints if checkpoint.learning_rate is None]
    if lacking:
        named = first_few([f"{one.name} ({one.no_rate})" for one in lacking], most=4)
        raise LearningRateError(
            "Each checkpoint's learning rate is needed to weigh it, and none is known for "
            f"{len(lacking)} of {len(checkpoints)}: {named}. Give one to each by "
            "learning_rates=[0.1, ...], or with the checkpoint by tracin.Checkpoint(path, 0.1), "
            'or weigh all equally by learning_rates="equal".'
        )
    warn_of_other_steps(checkpoints)
    return [known_rate(checkpoint.learning_rate) for checkpoint in checkpoints]


def warn_of_other_steps(checkpoints: Sequence[Checkpoint]) -> None:
    """Warn of rates that the Trainer logged in another step than the checkpoint's own."""
    late = [
        f"{one.name} has that of step {logged.step}"
        for one in checkpoints
        if isinstance(one.source, Path)
        and one.source.is_dir()
        and (logged := logged_rate(one.source)) is not None
        and logged.rate == one.learning_rate
        and logged.step != one.step
    ]
    if late:
        warnings.warn(
            "The Trainer logged no learning rate in the step of every checkpoint, so the last "
            f"one before it is taken: {first_few(late, most=4)}. A schedule may have changed "
            "it since. Pass the true ones as learning_rates=[...], and train with logging_steps=1.",
            CheckpointWarning,
            stacklevel=4,
        )


def given_rates(
    checkpoints: Sequence[Checkpoint], learning_rates: Any
) -> list[float | dict[str, float]]:
    """The rates in a list."""
    # A tensor or an array is a number only if it has no dimensions.
    if number(learning_rates) is not None and not getattr(learning_rates, "ndim", 0):
        raise LearningRateError(
            f"learning_rates must be {ALLOWED}; the number {learning_rates!r} was given. For the "
            f"same rate everywhere: [{learning_rates!r}] * {len(checkpoints)}."
        )
    if isinstance(learning_rates, Mapping) or not isinstance(learning_rates, Iterable):
        raise LearningRateError(
            f"learning_rates must be {ALLOWED}; {a_kind(learning_rates)} was given."
        )
    rates = list(learning_rates)
    if len(rates) != len(checkpoints):
        raise LearningRateError(
            f"learning_rates needs one for each of the {len(checkpoints)} checkpoints; "
            f"{len(rates)} were given."
        )
    return [
        valid_rate(rate, checkpoint.name)
        for rate, checkpoint in zip(rates, checkpoints, strict=True)
    ]


def spans(checkpoints: Sequence[Checkpoint]) -> list[float | dict[str, float]]:
    """The sum of the rates of the steps that each checkpoint stands for."""
    lacking = [one.name for one in checkpoints if one.log is None or one.step is None]
    if lacking:
        raise LearningRateError(
            'learning_rates="span" adds up the rates of all steps, which only the step log of a '
            f"tracin.Recorder has; there is none for {listed(lacking)}. Give the Recorder's "
            "folder or files in it, or learning_rates=[...] as you summed them."
        )
    runs: dict[Path, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        if checkpoint.log is not None:
            runs.setdefault(checkpoint.log.folder, []).append(checkpoint)
    weights: dict[int, float | dict[str, float]] = {}
    for run in runs.values():
        weights |= spans_of_run(run)
    return [weights[id(checkpoint)] for checkpoint in checkpoints]


def spans_of_run(checkpoints: Sequence[Checkpoint]) -> dict[int, float | dict[str, float]]:
    """The spans within one training run, by the checkpoints' identity."""
    # Training may have continued between two openings of the folder: the longest log is newest.
    log = max((one.log for one in checkpoints if one.log is not None), key=len)
    taken = Counter(one.step for one in checkpoints if one.step is not None)
    steps = sorted(taken)
    inner = [(before + after) // 2 for before, after in pairwise(steps)]
    bounds = dict(zip(steps, zip([0, *inner], [*inner, len(log)], strict=True), strict=True))
    weights: dict[int, float | dict[str, float]] = {}
    for checkpoint in checkpoints:
        step = checkpoint.step or 0
        total = span(log, *bounds[step], checkpoint.name)
        weights[id(checkpoint)] = divided_rate(total, taken[step])
    return weights


def span(log: StepLog, start: int, stop: int, name: str) -> float | dict[str, float]:
    """The sum of the rates of the steps in [start, stop)."""
    # Run by run, since in the sum a negative rate may hide.
    rates = {rate for _, _, rates in log.between(start, stop) for rate in rates}
    if not all(0 <= rate < math.inf for rate in rates):
        raise LearningRateError(
            f"The step log in {log.folder} has a learning rate that is negative or not finite "
            f"between steps {start} and {stop}, so {name} has no span. Give learning_rates=[...] "
            'or "equal".'
        )
    if not any(rates):
        warnings.warn(
            f"{name} stands for no step with a learning rate above 0, so it weighs 0 and its "
            "gradients are computed for nothing: leave it out.",
            CheckpointWarning,
            stacklevel=2,
        )
        return 0.0
    return log.total(start, stop)


def divided_rate(total: float | dict[str, float], among: int) -> float | dict[str, float]:
    """An equal part of a weight."""
    if isinstance(total, dict):
        return {name: value / among for name, value in total.items()}
    return total / among


def known_rate(rate: Rate | None) -> float | dict[str, float]:
    """A checkpoint's rate, in the types that weights have."""
    return dict(rate) if isinstance(rate, Mapping) else float(rate or 0.0)
