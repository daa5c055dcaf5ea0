"""Passes over checkpoints and batches, with the weights in place, and the scores of each batch."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.checkpoints import Checkpoint, by_parameter, loaded
from tracin.code_fingerprint import code_fingerprint, settings_fingerprint
from tracin.data import Batch, Examples, Size, length, move
from tracin.errors import PreconditionerError, TracInError
from tracin.files import bytes_of, fingerprint
from tracin.gradients import Covered, Gradients, SteppedDownError
from tracin.gradients.compute import Compute, checked_losses
from tracin.gradients.forms import real_shape
from tracin.gradients.kept_shapes import KeptShapes
from tracin.gradients.wording import worded
from tracin.guards import untouched
from tracin.host import to_host
from tracin.late_checks import LookAgainError, late_checks
from tracin.out_of_memory import is_out_of_memory
from tracin.plain_text import listed
from tracin.precision import in_double
from tracin.preconditioners import BatchFit, JointMetric, KeptMetrics, Metric, Place, Preconditioner
from tracin.preconditioners.fit_data import spread_evenly
from tracin.preconditioners.kfac import CurvatureMetric
from tracin.progress import bar
from tracin.scoring.batch_reader import BatchReader
from tracin.scoring.batch_scores import BatchScores
from tracin.scoring.batch_sums import BatchSums
from tracin.scoring.crossing import refuse_crossing
from tracin.scoring.few_examples_left import warn_if_fitted
from tracin.scoring.finite import check_finite, refuse_non_finite
from tracin.scoring.named_examples import examples_named
from tracin.scoring.padding import warn_if_padding_counts
from tracin.scoring.query_gradients import FEW, QueryGradients
from tracin.scoring.query_loss import QueryLoss, naming, what_is_asked
from tracin.scoring.query_pass import QueryPass
from tracin.scoring.read_ahead import ReadAhead
from tracin.scoring.score_request import ScoreRequest
from tracin.sharding import device_of

# Examples whose losses tell whether kept curvature is still that of the loss.
FEW_LOSSES = 16

# Examples in a batch per query whose factors are written out for each batch anew: as many rows are
# then written of both sides, and half again.
PER_QUERY = 2

_log = logging.getLogger(__name__)


@final
class CheckpointPass:
    """One model, its loss and its weighted checkpoints, to pass over any number of times.

    Args:
        model: The model.
        compute: The per-example loss.
        parameters: Those to trace, by name.
        checkpoints: In order.
        weights: One number per checkpoint, or one per parameter.
        device: Where to compute; None for where the model is.
        preconditioner: What multiplies a query's gradient; None scores gradients as they are.
        methods: Where audits keep the parameters' gradient methods, from one pass to the next.
        kept: The metrics of earlier passes; None keeps none.
        asked: What takes the place of the queries' loss; None for nothing.
        asked_methods: As `methods`, for `asked`.
        shapes: Where what is known of the model's calls is kept, likewise.

    Attributes:
        gradients: Those of training examples.
        query_gradients: Those of queries; the same without `asked`.
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
        methods: dict[str, Covered] | None = None,
        kept: KeptMetrics | None = None,
        asked: QueryLoss | None = None,
        asked_methods: dict[str, Covered] | None = None,
        *,
        shapes: KeptShapes | None = None,
        allow_tf32: bool = False,
    ) -> None:
        self.gradients = Gradients(model, worded(compute), parameters, methods, shapes)
        self.query_gradients = self.gradients
        if asked is not None:
            # Methods of its own: what a target does with a parameter is not what the loss does.
            own = worded(asked.compute)
            self.query_gradients = Gradients(model, own, parameters, asked_methods)
        self._asked = asked
        self._model = model
        self._checkpoints = checkpoints
        self._weights = weights
        self._device = device
        self._allow_tf32 = allow_tf32
        self._preconditioner = preconditioner
        # Ranks of a sharded model hold parts of the weights.
        self._kept = None if self.gradients.is_sharded else kept
        self._is_padding_known = False

    @property
    def checkpoints(self) -> int:
        """How many there are."""
        return len(self._checkpoints)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the checkpoints."""
        return tuple(checkpoint.name for checkpoint in self._checkpoints)

    @property
    def preconditioner(self) -> Preconditioner | None:
        """What multiplies a query's gradient."""
        return self._preconditioner

    @contextmanager
    def at(self, number: int, ahead: ReadAhead | None = None) -> Iterator[torch.device]:
        """Put a checkpoint in place, ready for gradients; leave the model as it was.

        Args:
            number: The checkpoint's place.
            ahead: What may have read it already.
        """
        checkpoint = self._checkpoints[number]
        with (
            untouched(self._model, allow_tf32=self._allow_tf32),
            loaded(
                self._model,
                checkpoint,
                self._device,
                read=None if ahead is None else ahead.taken(checkpoint),
            ),
            self.gradients.tracing(),
            self.query_gradients.tracing(),
        ):
            yield device_of(self._model)

    def read_next(self, number: int, ahead: ReadAhead, device: torch.device) -> None:
        """Begin to read a checkpoint, if there is one of this number, while a device computes."""
        if number < len(self._checkpoints):
            ahead.begin(self._checkpoints[number], device)

    def steps(
        self,
        train: Examples,
        span: range,
        request: ScoreRequest,
        batch_size: Size | None,
        progress: bool | None,
        what: str,
        fitted_on: Examples | None = None,
    ) -> Iterator[BatchScores]:
        """The scores of every batch of `span` at every checkpoint, in order.

        A preconditioner that is fitted on data is fitted on `fitted_on`; None stands for `train`.

        Raises:
            NonFiniteError: A loss or a gradient is NaN or infinite.
            CheckpointError: A checkpoint lacks what the preconditioner needs.
            SteppedDownError: An audit failed: drop the scores so far and begin again, as
                `until_settled` does.
        """
        basis = train if fitted_on is None else fitted_on
        metric, is_made = self.metric_of_all(basis, batch_size)
        with bar(len(self._checkpoints) * len(span), what, progress) as shown, ReadAhead() as ahead:
            for number, checkpoint in enumerate(self._checkpoints):
                with self.at(number, ahead) as device:
                    if not is_made:
                        metric = self.metric_at(number, basis, batch_size, device)
                    if isinstance(metric, JointMetric):
                        self._refuse_apart(number, request)
                        self._refuse_low_rank(request)
                    elif isinstance(metric, CurvatureMetric):
                        self.refuse_parted(number, metric)
                    reader = self.reader(train, span, batch_size, device)
                    runs = self._runs_of_queries(number, request, reader, metric)
                    for run, score in enumerate(runs):
                        if run > 0:
                            shown.total += len(span)
                        for found in reader.read(score):
                            check_finite(found, train.ids, checkpoint.name)
                            yield found
                            shown.update(len(found.positions))
                            # Not before the first batch: workers of a loader have forked by then.
                            self.read_next(number + 1, ahead, device)
                        del score  # with its queries, before the next are held
                    batch_size = reader.batch_size

    def reader(
        self,
        train: Examples,
        span: range,
        batch_size: Size | None,
        device: torch.device,
        part: range | None = None,
    ) -> BatchReader:
        """Batches of `span`, or of a part of it, at the checkpoint in place; the first is checked.

        The ranks of a sharded model pass the same span, and equally long parts.
        """
        reader = BatchReader(self.gradients, train, span, batch_size, device, part or span)
        refuse_crossing(self.gradients, train, device)
        found = None if self._is_padding_known else reader.of_unlike_length
        if found is not None:
            self._is_padding_known = True
            warn_if_padding_counts(self.gradients, train, *found)
        return reader

    def query_reader(
        self,
        queries: Examples,
        span: range,
        batch_size: Size | None,
        device: torch.device,
        part: range | None = None,
    ) -> BatchReader:
        """As `reader`, of queries."""
        if self._asked is None:
            return self.reader(queries, span, batch_size, device, part)
        with self.asked_named():
            return BatchReader(
                self.query_gradients, queries, span, batch_size, device, part or span
            )

    def asked_named(self) -> AbstractContextManager[None]:
        """Name the target in errors about the queries' losses."""
        return naming(self._asked)

    @property
    def what_is_asked(self) -> str:
        """What is explained of a query, for errors."""
        return what_is_asked(self._asked)

    def metric_at(
        self, number: int, train: Examples | None, batch_size: Size | None, device: torch.device
    ) -> Metric | JointMetric | None:
        """The preconditioner's metric at a checkpoint, which is in place; None without one."""
        if self._preconditioner is None:
            return None
        name = self._checkpoints[number].name
        is_alone = len(self._checkpoints) == 1 and not self._preconditioner.follows_training

        def read(examples: Examples, begin: Callable[[int], BatchFit]) -> None:
            span = range(len(examples))
            with _said_of_fit(self._preconditioner):
                # What a preconditioner keeps of examples, it keeps in their order.
                reader = BatchReader(
                    self.gradients, examples, span, batch_size, device, span, in_order=True
                )
            losses: list[Tensor] = []

            def take(positions: Sequence[int], batch: Batch, is_last: bool) -> None:
                with late_checks(device) as checks:
                    fit = begin(length(batch))
                    result = self.gradients.visit(batch, fit.visit, is_last=is_last)
                fetch = to_host if checks is None else checks.fetched
                found: Tensor | None = None
                with suppress(LookAgainError):
                    (found,) = fetch([in_double(result.losses)], reader.prepare_next)
                if found is None:
                    fit = begin(length(batch))
                    again = self.gradients.again(batch, fit.visit)
                    found = in_double(again.losses).cpu()
                refuse_non_finite(found, positions, examples.ids, name, "loss", "example")
                fit.commit()
                losses.append(found)

            for _ in reader.read(take):
                pass
            if is_alone:
                warn_if_fitted(torch.cat(losses), name)

        def about(examples: Examples) -> str:
            return fingerprint([self._fingerprint(), *self._few_losses(examples, device)])

        parameters = self.gradients.parameters
        return self._preconditioner.metric(
            Place(
                self._checkpoints[number],
                parameters,
                train,
                device,
                read,
                about,
                self._kept,
                None if self.gradients.is_sharded else self._weights_fingerprint,
            )
        )

    def _fingerprint(self) -> str:
        """Of the loss, the preconditioner, the traced parameters' methods, and all of the model."""
        compute = inspect.unwrap(self.gradients.compute)
        code = code_fingerprint(getattr(compute, "__self__", compute))
        settings = settings_fingerprint(self._model)
        methods = self.gradients.methods
        traced = [
            f"{name} {methods[name].method if name in methods else ''};"
            for name in self.gradients.parameters
        ]
        weights = self._weights_fingerprint()
        return fingerprint([code, settings, repr(self._preconditioner), *traced, weights])

    def _weights_fingerprint(self) -> str:
        """Of all weights and buffers in place."""
        state = [*self._model.named_parameters(), *self._model.named_buffers()]
        return fingerprint(
            piece
            for name, one in state
            for piece in (f"{name} {one.dtype} {tuple(one.shape)}", bytes_of(one))
        )

    def _few_losses(self, examples: Examples, device: torch.device) -> list[memoryview]:
        """Those of a few examples: they tell when what is behind the loss's code has changed."""
        chosen = examples.subset(spread_evenly(len(examples), FEW_LOSSES, 1))
        found = []
        with _said_of_fit(self._preconditioner), torch.enable_grad():  # a loss may take some
            for positions, batch in chosen.batches(FEW_LOSSES):
                with examples_named(chosen, positions, batch):
                    outcome = self.gradients.compute(self._model, move(batch, device))
                    found.append(bytes_of(checked_losses(outcome, len(positions))))
        return found

    def refuse_unfit_for_sketches(self) -> None:
        """Refuse a preconditioner whose queries drown in the noise of sketched gradients.

        Raises:
            PreconditionerError: It is such a one.
        """
        if self._preconditioner is not None and not self._preconditioner.fits_sketches:
            raise PreconditionerError(
                f"An index keeps sketches of plain gradients: under {self._preconditioner!r} their "
                "noise is larger than the products. Use run.influence(train, queries) or "
                "run.explain(train, queries), or a run with tracin.KFAC(), whose curvature an "
                "index computes from its own rows."
            )

    def _refuse_apart(self, number: int, request: ScoreRequest) -> None:
        """A metric that mixes parameters has no share of some, nor a weight for each."""
        if request.apart:
            raise PreconditionerError(
                "The last layer's self-influence is asked for apart, and under "
                f"{self._preconditioner!r}, which mixes all parameters, no layer has a share of "
                "its own. Leave the preconditioner out for find_mislabelled, or use tracin.KFAC()."
            )
        weights = set(by_parameter(self._weights[number], self.gradients.parameters).values())
        if len(weights) > 1:
            raise PreconditionerError(
                f"{self._preconditioner!r} mixes all parameters, so that they need one weight, but "
                f"at {self._checkpoints[number].name} they have {listed(map(str, weights))}. Pass "
                'learning_rates="equal", or one number per checkpoint.'
            )

    def _refuse_low_rank(self, request: ScoreRequest) -> None:
        """A metric that corrects products would need what is left out of a query."""
        if request.form is not None:
            raise PreconditionerError(
                f"{self._preconditioner!r} corrects the products of exact gradients, and queries "
                f"are asked for by {request.form!r}. Leave query_form out, or use a run without "
                "preconditioner, or with tracin.Adam(), tracin.KFAC() or tracin.EKFAC()."
            )

    def refuse_parted(self, number: int, metric: CurvatureMetric) -> None:
        """A bias is multiplied together with its weight, so that neither has a share of its own."""
        weights = by_parameter(self._weights[number], self.gradients.parameters)
        for weight, bias in metric.biases.items():
            if weights[weight] != weights[bias]:
                raise PreconditionerError(
                    f"{self._preconditioner!r} multiplies '{bias}' together with '{weight}', so "
                    "that they need one learning rate, but at "
                    f"{self._checkpoints[number].name} they have {weights[bias]:g} and "
                    f'{weights[weight]:g}. Pass learning_rates="equal", or one number per '
                    "checkpoint."
                )

    def metric_of_all(
        self, train: Examples | None, batch_size: Size | None
    ) -> tuple[Metric | JointMetric | None, bool]:
        """The metric that serves all checkpoints, and whether one does."""
        if self._preconditioner is None or not self._preconditioner.is_made_once:
            return None, self._preconditioner is None
        last = len(self._checkpoints) - 1
        with self.at(last) as device:
            return self.metric_at(last, train, batch_size, device), True

    def _runs_of_queries(
        self,
        number: int,
        request: ScoreRequest,
        reader: BatchReader,
        metric: Metric | JointMetric | None,
    ) -> Iterator[Callable[[Sequence[int], Batch, bool], BatchScores]]:
        """What scores a batch: once, or once for each run of queries that fits in memory."""
        if request.queries is None:
            yield partial(self._scores, number, None, range(0), request, metric, reader)
            return
        names = [n for n in self.gradients.parameters if n not in request.only_apart]
        weights = by_parameter(self._weights[number], names)
        source = QueryPass(
            self.query_gradients,
            request,
            weights,
            metric,
            reader,
            self._checkpoints[number].name,
            self._asked,
        )
        left = request.span
        while True:
            queries, taken = source.take(left)
            start = taken.start - request.span.start
            columns = range(start, start + len(queries))
            if queries.gain_by_examples:
                reader.grow(PER_QUERY * len(queries))
            yield partial(self._scores, number, queries, columns, request, metric, reader)
            left = range(taken.stop, left.stop)
            if not left:
                return
            _log.info("%d queries fit in memory at once; %d are left", len(taken), len(left))
            request = replace(request, norms=False)
            del queries  # before the next are held

    def _scores(
        self,
        number: int,
        queries: QueryGradients | None,
        columns: range,
        request: ScoreRequest,
        metric: Metric | JointMetric | None,
        reader: BatchReader,
        positions: Sequence[int],
        batch: Batch,
        is_last: bool,
    ) -> BatchScores:
        weights = by_parameter(self._weights[number], self.gradients.parameters)
        has_facts = request.facts and number == len(self._checkpoints) - 1
        directions: list[dict[str, Tensor]] = []
        slow = self.gradients.slow_names()
        # Forward mode hands over no gradients to multiply with the directions of a joint metric.
        is_forward = not request.norms and not isinstance(metric, JointMetric)
        if queries is not None and slow and is_forward and len(queries) <= FEW:
            shapes = {name: real_shape(self.gradients.parameters[name]) for name in slow}
            directions = queries.directions(shapes)
        with late_checks(reader.device) as checks:
            sums = BatchSums(length(batch), weights, queries, request, metric, checks=checks)
            visited = self.gradients.visit(
                batch, sums.visit, directions=directions, is_last=is_last
            )
        with suppress(LookAgainError):
            sums.refuse_cancelled()
            found = sums.scores(number, positions, columns, visited, has_facts=has_facts)
            return found.on_host(checks, reader.prepare_next)
        sums = BatchSums(length(batch), weights, queries, request, metric, is_written=True)
        again = replace(self.gradients.again(batch, sums.visit), scores=visited.scores)
        return sums.scores(number, positions, columns, again, has_facts=has_facts).on_host(None)


@contextmanager
def _said_of_fit(preconditioner: Preconditioner | None) -> Iterator[None]:
    """An error of the data that a preconditioner was given says that it is of these.

    Raises:
        PreconditionerError: The model or the loss does not take them.
    """
    try:
        yield
    except (TracInError, RuntimeError, ValueError, TypeError, IndexError) as error:
        is_other = isinstance(error, SteppedDownError) or is_out_of_memory(error)
        if getattr(preconditioner, "fit", None) is None or is_other:
            raise
        name = type(preconditioner).__name__
        raise PreconditionerError(
            f"Curvature cannot be computed from the data of {name}(fit=...): {error} Pass examples "
            "of the same kind as train."
        ) from error
