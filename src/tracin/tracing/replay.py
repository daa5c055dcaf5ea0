"""Repeat a recorded training: the same examples, rates and random numbers, step by step."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints import Checkpoint, Visits, bare_name, loaded, open_checkpoints
from tracin.checkpoints.step_log import StepLog
from tracin.data import move, open_examples
from tracin.errors import TracingError, TracingWarning
from tracin.guards import owned, untouched
from tracin.losses import PerExampleLoss, open_loss
from tracin.plain_text import many
from tracin.progress import bar
from tracin.results.table import aligned
from tracin.scoring.parameters import Selection
from tracin.scoring.targets import Target
from tracin.tracing.id_lookup import IdLookup
from tracin.tracing.paths import Quadrature
from tracin.tracing.replay_match import CheckpointMatch, match_checkpoint
from tracin.tracing.replay_optimizer import groups_text, has_state_for, without_state
from tracin.tracing.replay_target import with_last_predictions
from tracin.tracing.trace import Trace
from tracin.tracing.tracer import Tracer

# Model, batch -> the loss that is differentiated, a single number.
TrainingLoss = Callable[[Module, Any], Tensor]


@final
class Replay:
    """Repeats a recorded training for new queries.

    The record is that of a `tracin.Recorder` that was given each step's ids, by
    `recorder.batch(ids)`. A replay begins at the last checkpoint at or before `start` that it can
    begin at; each step then has the recorded examples, learning rates and random state, so that
    on the same machine and software the weights come out the same, bit for bit. That is checked
    at every later checkpoint, with a warning where they differ. Within the `with` block the model
    and the optimizer are those of the replay; on leaving, they are restored::

        with tracin.Replay(model, optimizer, "run", train) as replay:
            with tracin.Tracer(model, optimizer, loss, queries, train, "new") as tracer:
                for step in replay:
                    optimizer.zero_grad()
                    for ids, (inputs, labels) in step:
                        with tracer.batch(ids):
                            loss = F.cross_entropy(model(inputs), labels)
                        loss.backward()
                    optimizer.step()

    A loop that does just this needs one line, `replay.trace(loss, queries, "new")`.

    What the record does not hold must be as it was: the model's mode (dropout draws again only in
    train mode), clipping, mixed precision, and the optimizer's options other than its rates,
    unless its state was recorded. Random numbers that were drawn before `recorder.batch`, as those
    of augmentation in the dataset, are others.

    Attributes:
        start: The first step to be yielded, counted from 0.
        stop: The step after the last one.
        first: Where the replay begins, at most `start`.
        checks: How each checkpoint so far compares with the weights of the replay.

    Args:
        model: The model that was trained, or one built alike.
        optimizer: An optimizer as the training's, over this model's parameters.
        record: The Recorder's folder.
        train: The training data, with the ids that were recorded.
        start: The first step to repeat. If the optimizer keeps state, a replay begins only at
            checkpoints that hold it (`tracin.Recorder(..., optimizer_state=True)`). If there is no
            such checkpoint, it begins with the model's own weights as those before the first step:
            build the model with the training's seed; the first checkpoint shows whether they were
            the same. Call `recorder.save()` before the first step to avoid this.
        stop: Where to end; by default with the record.
        progress: Whether to show a bar; by default on a terminal.

    Raises:
        CheckpointError: There is no record, or it has no ids.
        TracingError: There are no such steps; the optimizer has other groups than the record.
        ModelInUseError: On entering the block: another thread holds the model indefinitely. Within
            the block, calls of tracin from other threads are refused.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        record: str | Path,
        train: Any,
        *,
        start: int = 0,
        stop: int | None = None,
        progress: bool | None = None,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._train = open_examples(train, name="train")
        self._ids = IdLookup(self._train.ids)
        self._visits = Visits.open(record)
        self._checkpoints = {one.step: one for one in open_checkpoints(record)}
        self._log = _log_of(list(self._checkpoints.values()))
        self._progress = progress
        steps = min(len(self._visits), len(self._log))
        self.start, self.stop = start, steps if stop is None else stop
        if not 0 <= self.start < self.stop <= steps:
            raise TracingError(
                f"Steps {start} to {self.stop} were asked for, and {record} has the ids of {steps} "
                "steps, counted from 0. Give a start and a stop within."
            )
        places = [
            step
            for step, one in self._checkpoints.items()
            if step is not None and step <= start and (step == 0 or has_state_for(one, optimizer))
        ]
        self._is_recorded = bool(places)
        self.first = max(places, default=0)
        self.checks: list[CheckpointMatch] = []
        self._within: ExitStack | None = None
        self._taken = 0

    @property
    def is_equal(self) -> bool:
        """Whether all checkpoints so far were met, bit for bit, and there was at least one."""
        return bool(self.checks) and all(check.is_equal for check in self.checks)

    def __repr__(self) -> str:
        return (
            f"Replay({type(self._model).__name__}, steps {self.start} to {self.stop} on "
            f"{many(len(self._train), 'example')})"
        )

    def __str__(self) -> str:
        if not self.checks:
            return f"Steps {self.first} to {self.stop}; no recorded checkpoint to compare with."
        head = ("checkpoint", "difference")
        rows = [
            (one.checkpoint, "none" if one.is_equal else f"{one.difference:.1e}")
            for one in self.checks
        ]
        return (
            f"Steps {self.first} to {self.stop}, compared with the record:\n{aligned(head, rows)}"
        )

    def trace(
        self,
        loss: str | PerExampleLoss,
        queries: Any | None,
        folder: str | Path,
        *,
        training_loss: TrainingLoss | None = None,
        paths: Sequence[Quadrature] = (Quadrature.TRAPEZOID, Quadrature.FIRST_ORDER),
        every: int = 1,
        parameters: Selection = None,
        target: Target | None = None,
        queries_at_once: int | None = None,
    ) -> Trace:
        """Trace new queries through the steps from `start` to `stop`.

        Args:
            loss: The queries' loss, as for `tracin.Tracer`, like all that is not named here.
            queries: The new queries; None for self-influence alone.
            folder: Where the trace is kept; a new one.
            training_loss: (model, batch) -> the number that was differentiated for a
                micro-batch. By default the mean of `loss` over it, over the number of
                micro-batches in its step.
            paths: Which amounts to add up.
            every: Trace each n-th step.
            parameters: Which to trace.
            target: What of the queries is explained, as `TracIn.explain` takes it; None for their
                loss. A class that it leaves open is the one that the last recorded checkpoint
                predicts.
            queries_at_once: How many queries' gradients are held at once.

        Raises:
            TracingError: As from `tracin.Tracer`.
            QueryError: As from `tracin.Tracer`.

        Warns:
            TracingWarning: The weights are not those of a recorded checkpoint.
        """
        compute = open_loss(loss)
        last = self._checkpoints[max(self._checkpoints, key=lambda step: step or 0)]
        asked, target = with_last_predictions(self._model, compute, last, queries, target)
        with self, ExitStack() as opened:
            tracer: Tracer | None = None
            for step in self._steps(self.first):
                if step.number == self.start:
                    tracer = opened.enter_context(
                        Tracer(
                            self._model,
                            self._optimizer,
                            loss,
                            asked,
                            self._train,
                            folder,
                            paths=paths,
                            every=every,
                            parameters=parameters,
                            target=target,
                            queries_at_once=queries_at_once,
                            repeats=True,  # what was recorded was trained on
                        )
                    )
                self._optimizer.zero_grad()
                for ids, batch in step:
                    size = len(ids) * len(step)
                    weights = None if training_loss else torch.full((len(ids),), 1 / size)
                    with tracer.batch(ids, weights) if tracer is not None else nullcontext():
                        if training_loss is None:
                            value = compute(self._model, batch).mean() / len(step)
                        else:
                            value = training_loss(self._model, batch)
                    value.backward()
                self._optimizer.step()
        return Trace.open(folder)

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            modes = [(module, module.training) for module in self._model.modules()]
            opened.enter_context(owned(self._model, "a Replay"))
            opened.enter_context(untouched(self._model))
            opened.enter_context(without_state(self._optimizer))
            begin = self._checkpoints[self.first] if self._is_recorded else None
            state = begin.optimizer_state() if begin is not None else None
            weights = self._model.state_dict() if begin is None else begin
            opened.enter_context(loaded(self._model, weights))
            for module, is_training in modes:
                module.training = is_training
            if state is not None:
                state.restore(self._model, self._optimizer)
            hook = self._optimizer.register_step_post_hook(self._count)
            opened.callback(hook.remove)
            self._within = opened.pop_all()
        self.checks, self._taken = [], self.first
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        within, self._within = self._within, None
        if within is not None:
            within.close()

    def __iter__(self) -> "Iterator[ReplayStep]":
        """The steps from `start` to `stop`; those before are taken on the way.

        Raises:
            TracingError: Not within the `with` block; steps before `start` must be repeated first;
                the last step was not taken, or more than one.
        """
        if self.first != self.start:
            raise TracingError(
                f"The last checkpoint to begin at is that of step {self.first}, before the start "
                f"at {self.start}, and only your own loop knows how to train the steps between: "
                f"give start={self.first}, or use replay.trace(...), which trains them."
            )
        yield from self._steps(self.start)

    def _steps(self, first: int) -> "Iterator[ReplayStep]":
        if self._within is None:
            raise TracingError("A replay runs within its block: with tracin.Replay(...) as replay.")
        device = next(self._model.parameters()).device
        with bar(self.stop - first, "replay", self._progress, "step") as shown:
            for number in range(first, self.stop):
                self._set_rates(number)
                yield ReplayStep(number, self._visits.ids(number), self._batches(number, device))
                if self._taken != number + 1:
                    raise TracingError(
                        f"Step {number} of the replay must end in one optimizer.step(); there "
                        f"were {self._taken - number}."
                    )
                self._check(number + 1)
                shown.update()

    def _batches(self, number: int, device: torch.device) -> Iterator[Any]:
        """The batches of a step; from the first on, its random numbers."""
        for at, ids in enumerate(self._visits.ids(number)):
            batch = move(self._train.take(self._ids.positions(ids).tolist()), device)
            if at == 0:
                self._visits.random_state(number).restore()
            yield batch

    def _set_rates(self, number: int) -> None:
        """The recorded learning rates of a step."""
        segment, rates = self._log.used(number)
        names = {id(one): bare_name(name) for name, one in self._model.named_parameters()}
        ours = [[names.get(id(p), "?") for p in g["params"]] for g in self._optimizer.param_groups]
        theirs = [[bare_name(name) for name in group] for group in segment.groups]
        if ours != theirs:
            raise TracingError(
                f"In step {number} the optimizer had {groups_text(theirs)}, and here it has "
                f"{groups_text(ours)}. Build it as it was then; where groups were added while "
                "training, replay the steps before and after separately."
            )
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _count(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._taken += 1

    def _check(self, step: int) -> None:
        """Compare with the checkpoint of this step, if there is one."""
        checkpoint = self._checkpoints.get(step)
        if checkpoint is None:
            return
        check = match_checkpoint(self._model, checkpoint, step)
        was_equal = all(one.is_equal for one in self.checks)
        self.checks.append(check)
        if not check.is_equal and was_equal:
            begin = (
                f"It began at the checkpoint of step {self.first}"
                if self._is_recorded
                else "It began at the weights that the model held, for lack of a checkpoint"
            )
            warnings.warn(
                f"The replay is not the recorded training: after step {step} its weights differ "
                f"from those of {checkpoint.name}, by {check.difference:.1e} of their length. "
                f"{begin}; from there, loss, mode, clipping, precision, threads, device and "
                "releases must be as they were, and nothing random may come before "
                "recorder.batch(ids). The trace is of this replay, not of the recorded training.",
                TracingWarning,
                stacklevel=2,
            )


@final
class ReplayStep:
    """One step to be taken again: its micro-batches, as (ids, batch).

    Attributes:
        number: The step, counted from 0.
    """

    def __init__(self, number: int, ids: list[list[Any]], batches: Iterator[Any]) -> None:
        self.number = number
        self._ids, self._batches = ids, batches

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[tuple[list[Any], Any]]:
        return zip(self._ids, self._batches, strict=False)


def _log_of(checkpoints: Sequence[Checkpoint]) -> StepLog:
    """The step log that a record's checkpoints share."""
    log = checkpoints[0].log
    if log is None:
        raise TracingError(
            f"{checkpoints[0].name} was not written by a Recorder: a replay needs a "
            "tracin.Recorder's folder."
        )
    return log
