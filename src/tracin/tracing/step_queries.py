"""The queries along a step: at its start, its end, and the points between that a path needs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.tracing.live_queries import LiveQueries, LiveQueryGradients
from tracin.tracing.traced_parameters import TracedParameters


@final
@dataclass(frozen=True, eq=False)
class StepQueryGradients:
    """Some queries along one step.

    Attributes:
        at: Position on the step, from 0 to 1 -> their gradients there.
        before: Their losses at the end of the last step: [queries].
        start: At the start of this one; others than before where running statistics changed.
        after: At its end.
    """

    at: Mapping[float, LiveQueryGradients]
    before: Tensor
    start: Tensor
    after: Tensor


@final
class StepQueries:
    """Takes the queries' gradients along each step, and reuses those of the last step's end.

    With `is_every_step`, each step begins where the last one ended.
    """

    def __init__(
        self,
        model: Module,
        queries: LiveQueries,
        parameters: TracedParameters,
        *,
        is_every_step: bool,
    ) -> None:
        self._model, self._queries, self._parameters = model, queries, parameters
        self._is_kept = len(queries.chunks) == 1 and is_every_step
        self._end: _StepEnd | None = None

    @property
    def chunks(self) -> list[range]:
        """The queries whose gradients are held at once."""
        return self._queries.chunks

    def along(self, chunk: range, positions: Sequence[float]) -> StepQueryGradients:
        """Some queries at these positions of the step that was just taken."""
        buffers = [(id(buffer), buffer._version) for buffer in self._model.buffers()]
        last = self._end if self._is_kept else None
        is_fresh = last is not None and last.buffers == buffers
        at: dict[float, LiveQueryGradients] = {}
        for position in positions:
            if position == 0.0 and is_fresh and last is not None and last.gradients is not None:
                at[0.0] = last.gradients
                continue
            with self._weights_at(position):
                at[position] = self._queries.gradients(chunk)
        if 0.0 in at:
            start = at[0.0].losses
        elif is_fresh and last is not None:
            start = last.losses
        else:
            with self._weights_at(0.0):
                start = self._queries.losses(chunk)
        is_wanted = self._is_kept and 0.0 in positions  # where the next step begins
        if 1.0 not in at and is_wanted:
            at[1.0] = self._queries.gradients(chunk)
        after = at[1.0].losses if 1.0 in at else self._queries.losses(chunk)
        before = last.losses if last is not None else start
        if self._is_kept:
            self._end = _StepEnd(at.get(1.0), after, buffers)
        return StepQueryGradients(at, before, start, after)

    def forget(self) -> None:
        """The next step does not begin where the last one ended."""
        self._end = None

    @contextmanager
    def _weights_at(self, position: float) -> Iterator[None]:
        """Put the point between the weights before (0) and those now (1) in place for a while."""
        if position == 1.0:
            yield
            return
        moving, before = self._parameters.moving, self._parameters.before
        own = {name: parameter.data for name, parameter in moving.items()}
        try:
            for name, parameter in moving.items():
                start = before[name]
                parameter.data = (
                    start if position == 0.0 else torch.lerp(start, own[name], position)
                )
            yield
        finally:
            for name, parameter in moving.items():
                parameter.data = own[name]


@final
@dataclass(frozen=True, eq=False)
class _StepEnd:
    """What is known of the queries at the end of the last step."""

    gradients: LiveQueryGradients | None
    losses: Tensor
    buffers: list[tuple[int, int]]
