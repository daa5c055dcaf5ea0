"""Walks checkpoints and batches with the weights in place, and gives each batch's scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from tracin.checkpoints import Checkpoint, by_parameter, loaded, untouched
from tracin.data import Batch, Examples, length, move, warn_if_changing
from tracin.data import part as part_of_batch
from tracin.data.batches import structure
from tracin.errors import DeviceError, NonFiniteError
from tracin.gradients import Covered, Gradients, until_settled
from tracin.gradients.fast import Compute, Pass
from tracin.gradients.forms import PerExampleGradient, ProductCache, real_shape
from tracin.gradients.wording import worded
from tracin.out_of_memory import is_out_of_memory
from tracin.preconditioners import Preconditioner, Scaling
from tracin.progress import bar
from tracin.scoring.batch_size import fitting_size
from tracin.scoring.named_examples import examples_named
from tracin.scoring.padding import warn_if_padding_counts
from tracin.scoring.query_gradients import FEW, QueryGradients
from tracin.sharding import device_of, each_says

T = TypeVar("T")


@final
@dataclass(frozen=True)
class ScoreRequest:
    """What is asked of every batch.

    Attributes:
        queries: Examples whose influence is asked for, or None.
        span: Which of them.
        together: Whether they are one query, their sum.
        norms: Whether squared gradient lengths are asked for.
        apart: Parameters whose squared lengths are given apart, beside those of all.
        only_apart: Parameters that are traced for `apart` alone.
    """

    queries: Examples | None = None
    span: range = range(0)
    together: bool = False
    norms: bool = False
    apart: frozenset[str] = frozenset()
    only_apart: frozenset[str] = frozenset()


@final
@dataclass(frozen=True)
class BatchScores:
    """What one batch gave at one checkpoint, on the model's device, weighted."""

    checkpoint: int
    positions: range
    scores: Tensor | None  # [examples, queries]
    norms: Tensor | None  # [examples]
    norms_apart: Tensor | None  # [examples]
    query_norms: Tensor | None  # [queries]
    outcome: Any  # what the loss gave


@final
class CheckpointPass:
    """One model, its loss and its weighted checkpoints, ready to be walked any number of times.

    Scores and squared lengths are those of gradients as they are, or, with a preconditioner, under
    what the optimizer multiplied each entry by at that checkpoint. `ways` keeps what audits have
    found of the parameters' ways, from one walk to the next.
    """

    def __init__(
        self,
        model: Module,
        compute: Compute,
        parameters: Mapping[str, Tensor],
        checkpoints: Sequence[Checkpoint],
        weights: Sequence[float | dict[str, float]],
        device: torch.device | str | None,
        preconditioner: Preconditioner | None = None,
        ways: dict[str, Covered] | None = None,
    ) -> None:
        self.gradients = Gradients(model, worded(compute), parameters, ways)
        self._model = model
        self._checkpoints = checkpoints
        self._weights = weights
        self._device = device
        self._preconditioner = preconditioner
        self._is_padding_known = False

    @property
    def checkpoints(self) -> int:
        """How many there are."""
        return len(self._checkpoints)

    @contextmanager
    def at(self, number: int) -> Iterator[torch.device]:
        """Put a checkpoint in place, ready for gradients; leave the model as it was."""
        with (
            untouched(self._model),
            loaded(self._model, self._checkpoints[number], self._device),
            self.gradients.tracing(),
        ):
            yield device_of(self._model)

    def steps(
        self,
        train: Examples,
        span: range,
        question: ScoreRequest,
        batch_size: int | None,
        progress: bool | None,
        what: str,
    ) -> Iterator[BatchScores]:
        """Every checkpoint, and at each of them every batch of `span`, in order.

        Raises:
            NonFiniteError: A loss or a gradient is NaN or infinite.
            CheckpointError: A checkpoint has not the moments that its scaling needs.
            SteppedDownError: An audit failed. The steps so far must be dropped, and be asked for
                again: `until_settled` does so.
        """
        with bar(len(self._checkpoints) * len(span), what, progress) as shown:
            for number, checkpoint in enumerate(self._checkpoints):
                with self.at(number) as device:
                    scaling = self._scaling(checkpoint)
                    reader = self.reader(train, span, batch_size, device)
                    queries = self._queries(number, question, reader, scaling)

                    read = partial(self._step, number, queries, question, scaling)
                    for step in reader.read(read):
                        check_finite(step, train.ids, checkpoint.name)
                        yield step
                        shown.update(len(step.positions))
                    batch_size = reader.batch_size

    def reader(
        self,
        train: Examples,
        span: range,
        batch_size: int | None,
        device: torch.device,
        part: range | None = None,
    ) -> "BatchReader":
        """Batches of `span`, or of a part of it, at the checkpoint in place; the first is checked.

        Ranks of a sharded model give the same span, and equally long parts.
        """
        reader = BatchReader(self.gradients, train, span, batch_size, device, part or span)
        if not self._is_padding_known and reader.first is not None:
            self._is_padding_known = True
            warn_if_padding_counts(self.gradients, train, *reader.first)
        return reader

    def scaling_at(self, number: int) -> Scaling | None:
        """The preconditioner's factors at a checkpoint, which is in place; None without one."""
        return self._scaling(self._checkpoints[number])

    def _scaling(self, checkpoint: Checkpoint) -> Scaling | None:
        if self._preconditioner is None:
            return None
        return self._preconditioner.scaling(checkpoint, self.gradients.parameters)

    def _queries(
        self,
        number: int,
        question: ScoreRequest,
        reader: "BatchReader",
        scaling: Scaling | None,
    ) -> QueryGradients | None:
        if question.queries is None:
            return None
        names = [n for n in self.gradients.parameters if n not in question.only_apart]
        weights = by_parameter(self._weights[number], names)
        queries = QueryGradients(weights, together=question.together, scaling=scaling)
        examples, span = question.queries, question.span
        few = move(examples.few(spread(span.start, len(span))), reader.device)
        if structure(few) != reader.structure:
            with examples_named(examples, spread(span.start, len(span)), few):
                self.gradients.check(few)
        self.gradients.begin(len(span))
        for positions, batch in examples.batches(reader.size, start=span.start, stop=span.stop):
            is_last = positions.stop == span.stop
            with examples_named(examples, positions, batch):
                losses = queries.add(self.gradients, move(batch, reader.device), is_last=is_last)
            name = self._checkpoints[number].name
            refuse_non_finite(losses, positions, examples.ids, name, "loss", "query")
            if not question.together:
                norms = queries.norms[-len(positions) :]
                refuse_non_finite(norms, positions, examples.ids, name, "gradient", "query")
        return queries

    def _step(
        self,
        number: int,
        queries: QueryGradients | None,
        question: ScoreRequest,
        scaling: Scaling | None,
        positions: range,
        batch: Batch,
        is_last: bool,
    ) -> BatchScores:
        weights = by_parameter(self._weights[number], self.gradients.parameters)
        sums = _Sums(length(batch), weights, queries, question, scaling)
        slow = self.gradients.slow_names()
        along = None
        if queries is not None and slow and not question.norms and len(queries) <= FEW:
            shapes = {name: real_shape(self.gradients.parameters[name]) for name in slow}
            directions = queries.directions(shapes)
            scores = self.gradients.along(batch, directions)
            along = None if scores is None else (scores, directions)
        leave_out = [] if along is None else slow
        result = self.gradients.visit(batch, sums.visit, leave_out=leave_out, is_last=is_last)
        if along is not None:
            self.gradients.audit_scores(result, *along)
            sums.add_scores(along[0])
        return sums.step(number, positions, result)


@final
class BatchReader:
    """Reads a span of examples at one checkpoint, batch by batch, in halves where memory ends.

    Attributes:
        device: Where batches go.
        size: How many examples a batch has, at most the span.
        batch_size: What `size` was cut from: for the next reader of the same walk.
        structure: The names, types and shapes of a batch.
        first: The positions and the batch that were checked, until they are read; None for the
            ranks of a sharded model.

    The ranks of a sharded model check the same first batch of the span, and each reads a part.
    """

    def __init__(
        self,
        gradients: Gradients,
        train: Examples,
        span: range,
        batch_size: int | None,
        device: torch.device,
        part: range,
    ) -> None:
        self._train, self._span = train, part
        self._is_sharded = gradients.is_sharded
        self.device = device
        two = move(train.few(span[:2]), device)
        with examples_named(train, span[:2], two):
            gradients.inspect(two)
            if batch_size is None:
                batch_size = fitting_size(gradients, two, device)
                if self._is_sharded:
                    batch_size = min(each_says(batch_size))
        self.batch_size, self.size = batch_size, min(batch_size, len(part))
        self._gradients = gradients
        if train.alone is not None:
            self.size = 1
        few = min(self.size, gradients.begin(len(part)))
        # Ranks of a sharded model check the same batch, which is no rank's own first one.
        rows = spread(span.start, min(batch_size, len(span)))
        chosen = rows if self._is_sharded else range(part.start, part.start + few)
        warn_if_changing(train, chosen)
        first = move(train.few(chosen), device)
        self.first = None if self._is_sharded else (chosen, first)
        with examples_named(train, chosen, first):
            gradients.check(first)
        self.structure = structure(first)

    def read(self, each: Callable[[range, Batch, bool], T]) -> Iterator[T]:
        """What `each` makes of every batch, in order.

        Args:
            each: (positions, batch, is_last) -> anything; called again where the batch was too
                large for memory, or where its parameters stepped down before anything was given.

        Raises:
            SteppedDownError: Some did later: what was given must be dropped.
        """
        start = self._span.start
        while start < self._span.stop:
            try:
                for positions, batch in self._batches(start):
                    is_last = positions.stop == self._span.stop
                    with examples_named(self._train, positions, batch):
                        if start == self._span.start:
                            found = until_settled(partial(each, positions, batch, is_last))
                        else:
                            found = each(positions, batch, is_last)
                    yield found
                    start = positions.stop
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self._is_sharded:
                    raise DeviceError(
                        f"A rank of a sharded model ran out of memory in a batch of {self.size}: "
                        "ranks cannot take smaller batches one by one. Give a smaller batch_size."
                    ) from error
                if self.size == 1:
                    raise
                self.size = self.batch_size = self.size // 2
                torch.cuda.empty_cache()

    def _batches(self, start: int) -> Iterator[tuple[range, Batch]]:
        """Batches from a position on; the first of all has few examples, and all are audited."""
        if start == self._span.start:
            few = self._gradients.begin(len(self._span), is_checked=self.first is not None)
            positions = range(start, min(start + few, start + self.size, self._span.stop))
            checked, self.first = self.first, None
            if checked is None:
                yield positions, move(self._train.take(positions), self.device)
            else:
                yield positions, part_of_batch(checked[1], slice(0, len(positions)))
            start = positions.stop
        for positions, batch in self._train.batches(
            self.size, start=start, stop=self._span.stop, as_views=True
        ):
            yield positions, move(batch, self.device)


def spread(start: int, size: int) -> list[int]:
    """A few positions from the two ends of a batch inwards: its first and last come outermost."""
    places = sorted({0, 1 % size, size // 3, 2 * size // 3, max(0, size - 2), size - 1})
    return [start + place for place in places]


class _Sums:
    """Adds up the shares of all parameters in one batch's scores."""

    def __init__(
        self,
        examples: int,
        weights: Mapping[str, float],
        queries: QueryGradients | None,
        question: ScoreRequest,
        scaling: Scaling | None,
    ) -> None:
        self._examples = examples
        self._weights = weights
        self._queries = queries
        self._question = question
        self._scaling = scaling
        self._memo = ProductCache()
        self._scores: Tensor | None = None
        self._norms: Tensor | None = None
        self._apart: Tensor | None = None

    def visit(self, name: str, form: PerExampleGradient, row: int) -> None:
        question = self._question
        is_counted = name not in question.only_apart
        if self._queries is not None and is_counted:
            scores = self._queries.products(name, form, self._memo)
            if scores is not None:
                self._scores = self._added(self._scores, scores, row)
        if question.norms:
            scaling = self._scaling
            own = scaling.squared_norm(name, form) if scaling else form.squared_norm()
            norms = self._weights[name] * own
            if is_counted:
                self._norms = self._added(self._norms, norms, row)
            if name in question.apart:
                self._apart = self._added(self._apart, norms.clone(), row)

    def add_scores(self, scores: Tensor) -> None:
        self._scores = self._added(self._scores, scores, 0)

    def step(self, number: int, positions: range, result: Pass) -> BatchScores:
        question, queries = self._question, self._queries
        zeros = result.losses.new_zeros
        scores = self._scores
        if queries is not None and scores is None:
            scores = zeros(self._examples, len(queries))
        norms, apart = self._norms, self._apart
        if question.norms:
            norms = zeros(self._examples) if norms is None else norms
            apart = zeros(self._examples) if apart is None else apart
        query_norms = None if queries is None else queries.norms
        return BatchScores(number, positions, scores, norms, apart, query_norms, result.outcome)

    def _added(self, total: Tensor | None, share: Tensor, row: int) -> Tensor:
        if row == 0 and share.shape[0] == self._examples:
            return share if total is None else total.add_(share)
        if total is None:
            total = share.new_zeros(self._examples, *share.shape[1:])
        total[row : row + share.shape[0]] += share
        return total


def check_finite(step: BatchScores, ids: np.ndarray, checkpoint: str) -> None:
    """Refuse a batch in which a loss, a gradient or a score is NaN or infinite."""
    losses = getattr(step.outcome, "losses", step.outcome).detach()
    found = [values for values in (step.norms, step.scores) if values is not None]
    # One look at the device: a sum over finite numbers is finite but for overflow, tested below.
    if bool(torch.isfinite(sum([values.sum() for values in found], losses.sum()))):
        return
    refuse_non_finite(losses, step.positions, ids, checkpoint, "loss", "example")
    for values in found:
        refuse_non_finite(values, step.positions, ids, checkpoint, "gradient", "example")


def refuse_non_finite(
    values: Tensor, positions: range, ids: np.ndarray, checkpoint: str, what: str, whose: str
) -> None:
    """Name the first example whose value is not finite."""
    rows = torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else torch.isfinite(values)
    if bool(rows.all()):
        return
    row = int((~rows).nonzero()[0])
    value = values[row].flatten()
    value = value[~torch.isfinite(value)][0].item()
    name = ids[positions[row]]
    name = name.item() if isinstance(name, np.generic) else name
    raise NonFiniteError(
        f"The {what} of {whose} {name!r} is {value} at checkpoint '{checkpoint}' "
        f"({int((~rows).sum())} in its batch are not finite). No score can be given for it: leave "
        "the checkpoint out, or the example, or compute the loss in higher precision."
    )
