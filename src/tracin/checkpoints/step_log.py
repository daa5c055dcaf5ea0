"""The learning rate of every step of a training run, and the parameters that it trained."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.state_dict import bare_name


@dataclass(frozen=True, eq=False)
class Segment:
    """Steps taken with the same parameter groups.

    Attributes:
        groups: The names of the parameters in each of the optimizer's groups.
        runs: (number of steps, rate of each group), in the order of the steps.
    """

    groups: tuple[tuple[str, ...], ...]
    runs: tuple[tuple[int, tuple[float, ...]], ...]

    def by_name(self, rates: tuple[float, ...]) -> dict[str, float]:
        """Each parameter's share of what is given for each group."""
        return {
            name: rate for names, rate in zip(self.groups, rates, strict=True) for name in names
        }


@dataclass(frozen=True, eq=False)
class StepLog:
    """The learning rates that a `tracin.Recorder` saw, step by step.

    Step t, counted from 0, takes the weights after t steps to those after t + 1.

    Attributes:
        folder: The recorder's folder; checkpoints with the same one come from one training run.
        segments: One for each set of parameter groups, in the order of the steps.
    """

    folder: Path
    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @cached_property
    def runs(self) -> list[tuple[Segment, int, tuple[float, ...]]]:
        """All runs of equal steps, each with the segment it belongs to."""
        return [(segment, *run) for segment in self.segments for run in segment.runs]

    @cached_property
    def ends(self) -> list[int]:
        """The number of steps taken when each run is over."""
        return list(accumulate(count for _, count, _ in self.runs))

    def used(self, step: int) -> tuple[Segment, tuple[float, ...]]:
        """The groups of step `step` (from 0), and the rate of each."""
        segment, _, rates = self.runs[bisect_right(self.ends, step)]
        return segment, rates

    def rate(self, step: int) -> float | dict[str, float]:
        """The rate of step `step` (from 0), by parameter name where the groups differ."""
        segment, rates = self.used(step)
        return one_rate_if_equal(segment.by_name(rates))

    def total(self, start: int, stop: int) -> float | dict[str, float]:
        """The sum of the rates of steps `start` to `stop - 1`, by name where the groups differ."""
        terms: dict[Segment, list[list[float]]] = {}
        for segment, count, rates in self.between(start, stop):
            groups = terms.setdefault(segment, [[] for _ in segment.groups])
            for group, rate in zip(groups, rates, strict=True):
                group.append(count * rate)
        by_name: dict[str, float] = {}
        for segment, groups in terms.items():
            totals = tuple(math.fsum(group) for group in groups)
            for name, total in segment.by_name(totals).items():
                by_name[name] = by_name.get(name, 0.0) + total
        # A parameter that joined the optimizer later has made no step before that.
        for segment in self.segments:
            for name in segment.by_name((0.0,) * len(segment.groups)):
                by_name.setdefault(name, 0.0)
        return one_rate_if_equal(by_name)

    def between(self, start: int, stop: int) -> Iterator[tuple[Segment, int, tuple[float, ...]]]:
        """The runs within [start, stop), with the number of their steps that lie in it."""
        for place in range(bisect_right(self.ends, start), len(self.runs)):
            segment, count, rates = self.runs[place]
            end = self.ends[place]
            if end - count >= stop:
                return
            yield segment, min(end, stop) - max(end - count, start), rates

    def until(self, step: int) -> "StepLog":
        """The log as it was when `step` steps had been taken."""
        kept: dict[Segment, list[tuple[int, tuple[float, ...]]]] = {}
        for segment, count, rates in self.between(0, step):
            kept.setdefault(segment, []).append((count, rates))
        segments = (Segment(segment.groups, tuple(runs)) for segment, runs in kept.items())
        return StepLog(self.folder, tuple(segments))


def one_rate_if_equal(by_name: dict[str, float]) -> float | dict[str, float]:
    """One number where all parameters share it."""
    values = set(by_name.values())
    return values.pop() if len(values) == 1 else by_name


class RateLog:
    """Counts equal steps into runs, and begins a segment whenever the groups change.

    Attributes:
        last: The rate of each group in the last step; empty where none was taken.
    """

    def __init__(
        self, model: Module, optimizer: Optimizer, segments: tuple[Segment, ...] = ()
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._closed = segments
        self._groups: tuple[tuple[str, ...], ...] = ()
        self._runs: list[tuple[int, tuple[float, ...]]] = []
        self._sizes: tuple[int, ...] = ()
        self.last: tuple[float, ...] = segments[-1].runs[-1][1] if segments else ()

    def rates(self) -> tuple[float, ...]:
        """The rate of each group now."""
        return tuple(float(one["lr"]) for one in self._optimizer.param_groups)

    def add(self, rates: tuple[float, ...]) -> None:
        """Count a step that was taken with these rates."""
        sizes = tuple(len(group["params"]) for group in self._optimizer.param_groups)
        if sizes != self._sizes:
            self._begin_segment(sizes)
        if self._runs and self._runs[-1][1] == rates:
            self._runs[-1] = (self._runs[-1][0] + 1, rates)
        else:
            self._runs.append((1, rates))
        self.last = rates

    def segments(self) -> tuple[Segment, ...]:
        """All segments so far."""
        if not self._runs:
            return self._closed
        return (*self._closed, Segment(self._groups, tuple(self._runs)))

    def _begin_segment(self, sizes: tuple[int, ...]) -> None:
        """Take down who is in which group, now and whenever a group was added."""
        self._closed = self.segments()
        names = {id(one): name for name, one in self._model.named_parameters()}
        self._groups = tuple(
            tuple(names[id(one)] for one in group["params"] if id(one) in names)
            for group in self._optimizer.param_groups
        )
        self._runs, self._sizes = [], sizes
        # A run that resumes with the same groups continues the same segment.
        if self._closed and self._closed[-1].groups == self._groups:
            self._runs = list(self._closed[-1].runs)
            self._closed = self._closed[:-1]


class TrainedNames:
    """Collects the names of trained parameters, step by step; freezing later takes none away."""

    def __init__(self, model: Module, optimizer: Optimizer, names: Iterable[str] = ()) -> None:
        self._model, self._optimizer = model, optimizer
        self._names = set(names)
        self._flags: list[bool] = []

    def look(self) -> None:
        """Add what is trained now; cheap where nothing changed."""
        parameters = [one for group in self._optimizer.param_groups for one in group["params"]]
        flags = [one.requires_grad for one in parameters]
        if flags == self._flags:
            return
        self._flags = flags
        trained = {id(one) for one, flag in zip(parameters, flags, strict=True) if flag}
        self._names |= {
            bare_name(name)
            for name, one in self._model.named_parameters(remove_duplicate=False)
            if id(one) in trained
        }

    def names(self) -> tuple[str, ...]:
        """All names so far, sorted."""
        return tuple(sorted(self._names))
