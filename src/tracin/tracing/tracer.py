"""First-order, path and ideal TracIn while a model trains, inside the user's own loop."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.fitting import bare_optimizer
from tracin.checks import positive_int
from tracin.data import move, open_examples
from tracin.errors import TracingError
from tracin.files import writing
from tracin.guards import Guard, Hold, owned
from tracin.losses import PerExampleLoss, open_loss
from tracin.plain_text import many, plain
from tracin.random_state import same_random_state
from tracin.scoring.parameters import Selection
from tracin.scoring.query_loss import live_query_loss
from tracin.scoring.targets import Target
from tracin.tracing.accumulate import ScoreAccumulator
from tracin.tracing.arguments import (
    checked_paths,
    checked_weights,
    refuse_closure,
    traceable_model,
)
from tracin.tracing.diagnostics import TraceDiagnostics
from tracin.tracing.folder import Tables
from tracin.tracing.id_lookup import IdLookup
from tracin.tracing.live_audit import LiveAudit
from tracin.tracing.live_queries import LiveQueries
from tracin.tracing.loss_weights import ModelOutputs, UnknownWeightsError, measured_weights
from tracin.tracing.manifest import About
from tracin.tracing.micro_batches import MicroBatch, ShareReader, check_shares
from tracin.tracing.overwriting import OverwriteCheck
from tracin.tracing.paths import Quadrature
from tracin.tracing.raw_gradients import RawGradients, densified
from tracin.tracing.resume import ResumableTrace
from tracin.tracing.step import StepInputs
from tracin.tracing.step_queries import StepQueries
from tracin.tracing.trace import Trace
from tracin.tracing.traced_parameters import TracedParameters
from tracin.tracing.updates import rule_of


@final
class Tracer:
    """Follows a training loop and shares each drop of the queries' losses among the examples.

    For each training example and query it adds up the example's part of every step that it was
    in: its part of the weights' real change, times the query's gradient (paper, sections 3.2 and
    3.3). Training is left as it is, bit for bit. The examples' gradients come from your own
    backward pass; the queries take one small pass per step::

        with tracin.Tracer(model, optimizer, loss, queries, train, "trace") as tracer:
            for ids, (inputs, labels) in tracin.with_ids(loader):
                optimizer.zero_grad()
                with tracer.batch(ids):
                    loss = F.cross_entropy(model(inputs), labels)
                loss.backward()
                optimizer.step()

    Learning rates, momentum and second moments are read from the optimizer at each step
    (`tracin.tracing.update_rule`), clipping and unscaling from the gradient that it is given.
    Gradient accumulation is several blocks before one step.

    Scores lie in `folder`, [train, queries] floats per path, memory-mapped, never all in memory;
    their space on the disk is reserved before the first step. Until its step is taken, a batch's
    layer inputs and output gradients are held, and one copy of the weights. Call `save` with your
    own checkpoints: a Tracer on the same folder, with the weights of a save in the model, resumes
    there; with the same random state the result is the same. A folder has one Tracer at a time.
    From `batch` to the end of the optimizer's step no other thread can use the model: its new
    calls of tracin are refused, and the Tracer waits for those that it has begun.

    Args:
        model: The model that is trained, uncompiled.
        optimizer: Its optimizer, of a kind that has an update rule.
        loss: The queries' loss, as for `tracin.TracIn`; their influence is on this.
        queries: The examples whose loss is to be explained; None to trace self-influence alone.
        train: All training examples, or as many with the same ids and labels: what their loss is
            multiplied by in the training loss is measured with them.
        folder: Where the trace is kept.
        paths: Which amounts to add up; see `tracin.tracing.Quadrature`.
        every: Trace each n-th step; examples get nothing for the others.
        parameters: Which to trace, as for `tracin.TracIn`; None for all that are trained, also
            those that are unfrozen later.
        scaler: The GradScaler of mixed precision, if there is one.
        target: What proponents raise, a number per query, as `TracIn.explain` takes it, with its
            class if it is about one: `tracin.Logit(3)`. None is for the queries' loss, which they
            lower. The trace's losses are then minus the target.
        queries_at_once: How many queries' gradients are held at once; None for all of them. Fewer
            take less memory and, with several paths or ends, more passes.
        repeats: Whether an example may come twice in a batch, as when a sampler draws with
            replacement; it then gets one share per occurrence.
        stops_training: Whether a disk that is full or fails ends the training with an error. False:
            warn, keep what was saved last, and train on without tracing.

    Raises:
        QueryError: The target is none, or of the class that the model will predict.
        TracingError: The optimizer has no update rule, or the folder holds another trace or has
            another Tracer.
        UnsupportedModelError: The model is compiled, or wrapped for training on several devices.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: str | PerExampleLoss,
        queries: Any | None,
        train: Any,
        folder: str | Path,
        *,
        paths: Sequence[Quadrature] = (Quadrature.TRAPEZOID, Quadrature.FIRST_ORDER),
        every: int = 1,
        parameters: Selection = None,
        scaler: Any = None,
        target: Target | None = None,
        queries_at_once: int | None = None,
        repeats: bool = False,
        stops_training: bool = True,
    ) -> None:
        model = traceable_model(model)
        positive_int(every, "every", TracingError)
        if queries_at_once is not None:
            positive_int(queries_at_once, "queries_at_once", TracingError)
        paths = checked_paths(paths)
        optimizer = bare_optimizer(optimizer, "Tracer", TracingError)
        rule_of(optimizer)
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._compute = open_loss(loss)
        self._train = open_examples(train, name="train")
        self._parameters = TracedParameters(
            model, optimizer, parameters, self._compute, self._train
        )
        query_examples = None if queries is None else open_examples(queries, name="queries")
        self._query_ids = np.zeros(0, np.int64) if query_examples is None else query_examples.ids
        self._ids = IdLookup(self._train.ids)
        asked = None
        if target is not None:
            outcome = getattr(self._compute, "outcome", None)
            asked = live_query_loss(outcome, self._compute, target)
        query_compute = self._compute if asked is None else asked.compute
        self._queries = LiveQueries(model, query_compute, query_examples, queries_at_once, asked)
        self._every, self._repeats = every, repeats
        name = "" if asked is None else asked.name
        about = About.of(self._train, query_examples, optimizer, paths, every, parameters, name)
        self._tables = Tables(folder, about, self._train.ids, self._query_ids)
        self._trace = ResumableTrace(self._tables, model, stops_training=stops_training)
        self._raw = RawGradients()
        self._audit = LiveAudit(model, self._compute, self._train)
        self._overwriting = OverwriteCheck(optimizer)
        self._step_queries = StepQueries(
            model, self._queries, self._parameters, is_every_step=every == 1
        )
        self._scores = ScoreAccumulator(
            self._trace,
            optimizer,
            self._parameters,
            self._raw,
            self._step_queries,
            paths,
            self._train.ids,
        )
        self._reader: ShareReader | None = None
        self._pending: list[MicroBatch] = []
        self._inputs: StepInputs | None = None
        self._hold = Hold(model, "a Tracer, between batch() and step(),", is_brief=False)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def __repr__(self) -> str:
        queries = many(len(self._query_ids), "query") if len(self._query_ids) else "no queries"
        return (
            f"Tracer({type(self._model).__name__}, {many(len(self._train), 'example')}, {queries}, "
            f"{many(self.step, 'step')} so far, {plain(self._tables.folder)})"
        )

    @property
    def step(self) -> int:
        """The number of optimizer steps so far."""
        return self._trace.step

    @contextmanager
    def batch(self, ids: Any, weights: Tensor | None = None) -> Iterator[None]:
        """The forward pass of one batch, or micro-batch: put it within, and nothing else.

        Args:
            ids: [examples], in the order of the batch.
            weights: The factor of each example's loss in the loss that is differentiated,
                [examples]; only self-influence needs it. None: measured in each step, from the
                gradients at the model's outputs.

        Raises:
            TracingError: An id is not of the training data, or comes twice; the number of ids is
                not that of the examples; a traced batch was discarded before its step.
            ModelInUseError: Another thread holds the model indefinitely.
        """
        if self._handles:
            self._hold.take()  # until the step, or the end of tracing
        try:
            with self._reading(ids, weights):
                yield
        except BaseException:
            self._hold.release()
            raise

    @contextmanager
    def _reading(self, ids: Any, weights: Tensor | None) -> Iterator[None]:
        if not self._open():
            yield
            return
        positions = self._ids.positions(ids)
        if not self._repeats:
            self._ids.refuse_repeats(positions)
        if weights is not None:
            weights = checked_weights(weights, len(positions))
        if self.step % self._every:
            yield
            return
        self._drop_unused()
        for earlier in self._pending:
            if earlier.outputs is not None and earlier.outputs.has_gradients:
                self._weigh(earlier)
        self._refresh()
        scale = float(self._scaler.get_scale()) if self._scaler is not None else 1.0
        outputs = ModelOutputs() if weights is None and not self._trace.unweighed else None
        batch = MicroBatch(positions, weights, scale, outputs)
        with ExitStack() as opened:
            opened.enter_context(self._audit.capturing(batch, self._tables.rows))
            opened.enter_context(self._opened_reader.reading(batch))
            if outputs is not None:
                opened.enter_context(outputs.watching(self._model))
            yield
        self._pending.append(batch)

    def save(self) -> None:
        """Keep the trace as it is now, together with your own checkpoint of the same step.

        Raises:
            TracingError: The disk is full, or the last step could not be traced.
            ModelInUseError: Another thread holds the model indefinitely.
        """
        self._trace.refuse_halfway()
        with self._owned():
            if not self._open():
                return
            with self._on_disk():
                self._trace.save()

    def trace(self) -> Trace:
        """What was traced so far: a copy on the disk, which later steps do not change.

        Raises:
            TracingError: The disk is full, or the last step could not be traced.
            ModelInUseError: Another thread holds the model indefinitely.
        """
        folder, about = self._tables.folder, self._tables.about
        self._trace.refuse_halfway()
        with self._owned():
            if not self._open():
                return Trace.open(folder)
            with writing(folder, TracingError):
                save, tables = self._trace.view()
        return Trace(folder, about, save, self._train.ids, self._query_ids, tables)

    def goodness(self, path: Quadrature | None = None) -> TraceDiagnostics:
        """How well the trace explains the real losses; see `tracin.tracing.Trace.goodness`."""
        return self.trace().goodness(path)

    def close(self) -> None:
        """Stop listening, and save.

        Raises:
            TracingError: The last batch was traced, but no optimizer step followed it.
        """
        if not self._stop():
            return
        if self._pending:
            raise TracingError(
                f"The last traced batch of {len(self._pending[-1])} examples was not followed by "
                "optimizer.step(), so it is in no score. All steps before it are saved."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._stop(is_broken=True)

    def _stop(self, *, is_broken: bool = False) -> bool:
        if not self._handles:
            return False
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._raw.close()
        try:
            # After an error the tables may hold half a step: what was saved before counts.
            if self._trace.is_open and not is_broken and not self._trace.is_over:
                self._trace.refuse_halfway()
                with self._owned(), self._on_disk():
                    self._trace.finish()
        finally:
            self._hold.release()
            self._tables.release()
        return True

    def _owned(self) -> AbstractContextManager[None]:
        """For as long as the weights are looked at: others that use the model put in their own."""
        return owned(self._model, "a Tracer that saves", is_brief=True)

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Where the disk fails, training ends with an error, or continues without a trace."""
        try:
            yield
        except OSError as cause:
            self._trace.give_up(cause)
            self._pending = []
            self._raw.close()

    def _open(self) -> bool:
        """Begin, or resume from the save that has the model's weights; False once that is over."""
        if not self._trace.is_open and not self._trace.is_over:
            save = self._trace.find()
            with self._on_disk():
                self._trace.begin(save)
        return not self._trace.is_over

    def _refresh(self) -> None:
        """Look anew where parameters were frozen or unfrozen."""
        with self._raw.paused():
            is_changed = self._parameters.refresh()
        if not is_changed:
            return
        traced = self._parameters.traced
        self._queries.select(traced)
        if self._train.alone is not None:
            raise TracingError(
                "A Tracer splits a step's gradient into its examples' shares, but the training "
                f"data has no example dimension: {self._train.alone}. Record checkpoints while "
                "training, and score them with tracin.TracIn, which takes such examples one by "
                "one."
            )
        with self._raw.paused(), same_random_state():
            example = move(self._train.take([0]), next(iter(traced.values())).device)
            self._reader = ShareReader(self._model, self._compute, traced, example)
        self._scores.expect_new_parameters()
        self._step_queries.forget()
        self._raw.watch(traced)

    @property
    def _opened_reader(self) -> ShareReader:
        if self._reader is None:
            raise RuntimeError("read shares before parameters are known")
        return self._reader

    def _drop_unused(self) -> None:
        """Drop batches whose gradients were discarded: mixed precision skipped their step."""
        if not self._pending or any(
            parameter.grad is not None and bool(densified(parameter.grad).any())
            for parameter in self._parameters.traced.values()
        ):
            return
        if self._scaler is None and any(batch.forms for batch in self._pending):
            raise TracingError(
                f"A batch of {len(self._pending[-1])} examples was traced, but its gradients were "
                "discarded (zero_grad) before optimizer.step(). Trace only batches that are "
                "trained on; a GradScaler skips steps: Tracer(..., scaler=scaler)."
            )
        self._pending = []
        self._raw.clear()
        self._trace.skipped += 1

    def _weigh(self, batch: MicroBatch) -> None:
        """Measure by what each example's loss was multiplied, and let go of the outputs."""
        outputs, batch.outputs = batch.outputs, None
        if outputs is None or self._trace.unweighed:
            return
        try:
            batch.weights = measured_weights(
                self._model,
                self._compute,
                self._train,
                batch.positions,
                outputs,
                scale=batch.scale,
                seed=self.step,
            )
        except UnknownWeightsError as error:
            self._trace.unweighed = f"in step {self.step} {error}"

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._inputs = None
        self._hold.take()  # also where no batch was announced, or another thread takes the step
        try:
            self._inputs = self._step_inputs(optimizer, args, kwargs)
        except BaseException:
            self._hold.release()
            raise

    def _step_inputs(self, optimizer: Optimizer, args: Any, kwargs: Any) -> StepInputs | None:
        """The gradients and options of the step that is about to be taken; None to leave it."""
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return None
        self._trace.refuse_halfway()
        if not self._open():
            return None
        if self.step % self._every:
            return StepInputs({}, {}, {}, 1.0)
        with self._on_disk():
            self._tables.reserve_step()
        if self._trace.is_over:
            return None
        refuse_closure(args, kwargs)
        if not self._pending:
            raise TracingError(
                f"optimizer.step() number {self.step} came without a traced batch: put the forward "
                "pass of each batch within tracer.batch(ids). To trace some steps, pass every=n."
            )
        self._parameters.refuse_changed(self.step)
        for batch in self._pending:
            batch.settle()
        traced = self._parameters.traced
        is_overwriting = self._overwriting.expects_overwriting()
        inputs = StepInputs.of(optimizer, traced, is_overwriting=is_overwriting)
        self._parameters.refuse_moving_frozen()
        check_shares(self._pending, inputs.gradients)
        with self._raw.paused():
            for batch in self._pending:
                self._audit.check(batch, self._opened_reader, self.step)
        self._parameters.begin_step()
        for batch in self._pending:
            self._weigh(batch)
        return inputs

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        inputs, self._inputs = self._inputs, None
        try:
            if inputs is not None:
                self._finish(inputs)
        finally:
            self._hold.release()

    def _finish(self, inputs: StepInputs) -> None:
        """Share out the step that was taken."""
        if self.step % self._every == 0:
            with self._trace.halfway():
                self._overwriting.observe(inputs, self._parameters, self.step)
                # The queries are evaluated at other weights: an interrupt must not leave those.
                guard = Guard(self._model, "a Tracer")
                with self._raw.paused(), guard, guard, torch.no_grad(), self._on_disk():
                    self._scores.add(inputs, self._pending)
            self._pending = []
            self._raw.clear()
            if self._trace.is_over:
                return
            if self._every == 1:
                self._parameters.end_step()
        if self._every > 1:
            self._parameters.forget()
            self._step_queries.forget()
        self._trace.step += 1
