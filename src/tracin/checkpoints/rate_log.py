"""The learning rates of a training run while it goes on: what a Recorder adds to, step by step."""

from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.step_log import Segment


class RateLog:
    """Counts equal steps into runs, and begins a segment whenever the groups change.

    Attributes:
        last: The rate of each group in the last step; empty where none was taken.

    Args:
        model: The model, for its parameters' names.
        optimizer: Its optimizer.
        segments: What an earlier run has logged.
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
        # A run that goes on with the same groups goes on in the same segment.
        if self._closed and self._closed[-1].groups == self._groups:
            self._runs = list(self._closed[-1].runs)
            self._closed = self._closed[:-1]
