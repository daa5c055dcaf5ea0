"""First-order, path and ideal TracIn while a model trains, inside a person's own loop."""

import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor
from torch.distributed import get_world_size
from torch.nn import DataParallel, Module, Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from tracin.checkpoints import untouched
from tracin.checkpoints.fitting import bare_optimizer
from tracin.checks import positive_int
from tracin.data import content_of, move, open_examples
from tracin.errors import NonFiniteError, TracingError, TracingWarning, UnsupportedModelError
from tracin.files import ids_fingerprint, unwritable, writing
from tracin.gradients.forms import PerExampleGradient, ProductCache
from tracin.guards import Guard, Hold, owned
from tracin.losses import PerExampleLoss, open_loss
from tracin.plain_text import listed
from tracin.scoring.last_used import last_used
from tracin.scoring.parameters import LAST, Selection, chosen_parameters
from tracin.tracing.asked import Asked, Questions, weights_at
from tracin.tracing.diagnostics import TraceDiagnostics
from tracin.tracing.fingerprints import (
    query_fingerprint,
    weights_fingerprint,
)
from tracin.tracing.folder import About, Save, Tables, add_rows
from tracin.tracing.gradient_use import Seen, assumed, examined, written
from tracin.tracing.live_audit import Call, asked, captured, gaps, repeated
from tracin.tracing.paths import Quadrature
from tracin.tracing.places import Places
from tracin.tracing.probe import loss_factor
from tracin.tracing.shares import Share, Watcher, check_shares
from tracin.tracing.step_table import PARTS, StepRow
from tracin.tracing.taken import Made, Taken
from tracin.tracing.trace import Trace
from tracin.tracing.updates import StepTaken, rule_of
from tracin.wrappers import unwrapped

# How far the sum over examples may be from the gradient's own product, for one query a step.
AGREED = 1e-4

# The share of a gradient's length that is worth a word when it is nobody's.
NOTICED = 0.01

# While nothing changes the gradients on their way, they are compared at every so many steps.
LOOKS = 10


@final
class Tracer:
    """Follows a training loop and shares out, step by step, what lowers the queries' losses.

    For each training example and query it adds up the example's part of every step that it was
    in: the part of the weights' real change that came of it, times the query's gradient (paper,
    sections 3.2 and 3.3). Training is left as it is, bit for bit. The examples' gradients come of
    your own backward pass; the queries take one small pass a step::

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

    Scores lie in `folder`, [train, queries] floats a path, memory-mapped, never all in memory;
    their space on the disk is taken before the first step. Until its step is taken, a batch's
    layer inputs and output gradients are held, and one copy of the weights. Call `save` with your
    own checkpoints: a Tracer on the same folder, with the weights of a save in the model, goes on
    from there; with the same random state the result is the same. A folder has one Tracer at a
    time. From `batch` to the end of the optimizer's step no other thread can use the model: its
    calls of tracin are refused, and those that it has begun are waited for.

    Attributes:
        step: The number of optimizer steps so far.

    Args:
        model: The model that is trained, uncompiled.
        optimizer: Its optimizer, of a kind that has an update rule.
        loss: The queries' loss, as for `tracin.TracIn`; their influence is on this.
        queries: The examples whose loss is to be explained; None to trace self-influence alone.
        train: All training examples, or as many with the same ids; their number and ids count, and
            a few are looked at to learn how the training loss weighs its examples.
        folder: Where the trace is kept.
        paths: Which amounts to add up; see `tracin.tracing.Quadrature`.
        every: Trace each n-th step; examples get nothing for the others.
        parameters: Which to trace, as for `tracin.TracIn`; None for all that are trained, also
            those that are unfrozen later.
        scaler: The GradScaler of mixed precision, if there is one.
        queries_at_once: How many queries' gradients are held at once; None for all of them. Fewer
            take less memory and, with several paths or ends, more passes.
        repeats: Whether an example may come twice in a batch, as when a sampler draws with
            replacement; it then gets a share for each time.
        stops_training: Whether a disk that is full or fails ends the training with an error. False:
            warn, keep what was saved last, and train on without tracing.

    Raises:
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
        queries_at_once: int | None = None,
        repeats: bool = False,
        stops_training: bool = True,
    ) -> None:
        model = _traceable(model)
        positive_int(every, "every", TracingError)
        if queries_at_once is not None:
            positive_int(queries_at_once, "queries_at_once", TracingError)
        if not paths or not all(isinstance(path, Quadrature) for path in paths):
            raise TracingError(
                "paths are some of tracin.tracing.Quadrature, such as "
                f"[tracin.tracing.Quadrature.TRAPEZOID]; {paths!r} was given."
            )
        optimizer = bare_optimizer(optimizer, "Tracer", TracingError)
        self.step = 0
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._rule = rule_of(optimizer)
        self._compute = open_loss(loss)
        self._selection = parameters
        chosen_parameters(model, parameters)
        self._train = open_examples(train, name="train")
        self._queries = None if queries is None else open_examples(queries, name="queries")
        self._query_ids = np.zeros(0, np.int64) if self._queries is None else self._queries.ids
        self._places = Places(self._train.ids)
        self._questions = Questions(model, self._compute, self._queries, queries_at_once)
        self._paths = tuple(dict.fromkeys(paths))
        self._every = every
        self._repeats = repeats
        about = About(
            len(self._train),
            ids_fingerprint(self._train.ids),
            len(self._query_ids),
            "" if self._queries is None else query_fingerprint(self._queries),
            type(optimizer).__name__,
            tuple(path.value for path in self._paths),
            every,
            _said(parameters),
        )
        self._about = about
        self._tables = Tables(folder, about, self._train.ids, self._query_ids)
        self._stops_training = stops_training
        self._is_open = self._is_over = self._has_failed = False
        self._skipped = 0
        self._factor: float | None = None
        self._is_probed = False
        self._has_self = True
        self._traced: dict[str, Tensor] = {}
        self._flags: list[tuple[bool, bool]] = []
        self._watcher: Watcher | None = None
        self._is_told = self._is_unaudited = False
        self._moving: dict[str, Tensor] = {}  # all that a step may move, traced or not
        self._own_versions: dict[str, int] = {}
        self._options = ""  # those of the last step, but for its rates
        self._is_overwriting = True  # whether the optimizer may write into the gradients
        self._is_new = True  # whether the traced parameters were never looked at in a step
        self._before: dict[str, Tensor] = {}
        self._pending: list[Share] = []
        self._calls: list[list[Call]] = []  # beside each pending share, where the step is audited
        self._seen: dict[str, Seen] = {}
        self._taken: Taken | None = None
        self._ends: _Ends | None = None
        self._is_busy = False
        self._hold = Hold(model, "a Tracer, between batch() and step(),", is_brief=False)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._grad_handles: dict[str, Any] = {}

    @contextmanager
    def batch(self, ids: Any, weights: Tensor | None = None) -> Iterator[None]:
        """The forward pass of one batch, or micro-batch: put it within, and nothing else.

        Args:
            ids: [examples], in the order of the batch.
            weights: By what each example's loss is multiplied in the loss that is differentiated,
                [examples]; only self-influence needs it. None: found out by a look at a few
                examples' own gradients, where all have one weight.

        Raises:
            TracingError: An id is not of the training data, or comes twice; the number of ids is
                not that of the examples; a traced batch was thrown away before its step.
            ModelInUseError: Another thread has the model for as long as it likes.
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
        positions = self._places.of(ids)
        if not self._repeats:
            self._places.refuse_repeats(positions)
        if weights is not None:
            weights = torch.as_tensor(weights).detach().cpu().double().flatten()
            if weights.shape != (len(positions),) or not bool((weights > 0).all()):
                raise TracingError(
                    f"weights needs one number above 0 for each of the {len(positions)} ids."
                )
        if self.step % self._every:
            yield
            return
        self._drop_unused()
        self._retrace()
        scale = float(self._scaler.get_scale()) if self._scaler is not None else 1.0
        share = Share(positions, weights, scale)
        if self._watcher is None:
            raise RuntimeError("no watcher")
        calls: list[Call] = []
        capture = captured(self._model, calls) if self._is_audited else nullcontext()
        with capture, self._watcher.reading(share):
            yield
        self._pending.append(share)
        if self._is_audited:
            self._calls.append(calls)

    def save(self) -> None:
        """Keep the trace as it is now, beside your own checkpoint of the same step.

        Raises:
            TracingError: The disk is full, or the last step could not be traced.
            ModelInUseError: Another thread has the model for as long as it likes.
        """
        self._refuse_failed()
        with self._owned():
            if not self._open():
                return
            with self._on_disk():
                self._tables.save(self._state())

    def trace(self) -> Trace:
        """What was traced so far: a copy on the disk, which later steps do not change.

        Raises:
            TracingError: The disk is full, or the last step could not be traced.
            ModelInUseError: Another thread has the model for as long as it likes.
        """
        self._refuse_failed()
        with self._owned():
            if not self._open():
                return Trace.open(self._tables.folder)
            with writing(self._tables.folder, TracingError):
                save, tables = self._tables.view(self._state())
        return Trace(
            self._tables.folder, self._about, save, self._train.ids, self._query_ids, tables
        )

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
        for handle in [*self._handles, *self._grad_handles.values()]:
            handle.remove()
        self._handles, self._grad_handles = [], {}
        try:
            # After an error the tables may hold half a step: what was saved before counts.
            if self._is_open and not is_broken and not self._is_over:
                self._refuse_failed()
                with self._owned(), self._on_disk():
                    self._tables.save(replace(self._state(), is_final=True))
                    self._tables.trim()
        finally:
            self._hold.release()
            self._tables.release()
        return True

    def _owned(self) -> AbstractContextManager[None]:
        """For as long as the weights are looked at: others that use the model put in their own."""
        return owned(self._model, "a Tracer that saves", is_brief=True)

    def _refuse_failed(self) -> None:
        if self._has_failed:
            raise TracingError(
                f"Step {self.step} could not be traced to its end, so the tables hold half of it. "
                "Load your checkpoint of the last save, and open a Tracer on the same folder."
            )

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Word what goes wrong on the disk; training ends with it, or goes on without a trace."""
        try:
            yield
        except OSError as cause:
            words = unwritable(self._tables.folder, cause)
            if self._stops_training:
                raise TracingError(words) from cause
            self._is_over = True
            self._pending = []
            for handle in self._grad_handles.values():
                handle.remove()
            warnings.warn(
                f"{words} Training goes on, but is not traced from step {self.step} on.",
                TracingWarning,
                stacklevel=3,
            )

    def _state(self) -> Save:
        return Save(
            self.step,
            self._tables.rows,
            self._skipped,
            self._factor,
            weights_fingerprint(self._model),
            self._has_self,
        )

    def _open(self) -> bool:
        """Begin, or go on from the save that has the model's weights; False once that is over."""
        if self._is_open or self._is_over:
            return not self._is_over
        saves = self._tables.saves()
        weights = weights_fingerprint(self._model)
        found = next((save for save in reversed(saves) if save.weights == weights), None)
        is_begun = self._tables.has_unsaved_steps() or any(save.rows for save in saves)
        if found is not None and not found.rows and saves[-1].is_final:
            raise TracingError(
                f"{self._tables.folder} holds the finished trace of {saves[-1].step} steps, and "
                "the model holds the weights that it began with. To go on, load those that it "
                "ended with; to start afresh, give a new folder."
            )
        if found is None and is_begun:
            steps = " and ".join(str(save.step) for save in saves) or "0"
            raise TracingError(
                f"{self._tables.folder} holds a trace saved after {steps} steps, but the "
                "model holds other weights than then. To go on, load your own checkpoint of "
                "such a step before the first batch (before the first save, the weights that "
                "training began with); to start afresh, give a new folder."
            )
        if found is not None:
            self.step, self._skipped, self._factor = found.step, found.skipped, found.factor
            self._has_self, self._is_probed = found.has_self, found.rows > 0
        with self._on_disk():
            self._tables.open(self._state() if found is None else found)
            if found is None:
                self._tables.save(self._state())
            self._is_open = True
        return not self._is_over

    def _reserve(self) -> bool:
        """Take the space for the row of the next step; False where tracing is over."""
        with self._on_disk():
            self._tables.reserve_step()
        return not self._is_over

    def _retrace(self) -> None:
        """Look anew where parameters were frozen or unfrozen."""
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        flags = [(p.requires_grad, id(p) in held) for p in self._model.parameters()]
        if flags == self._flags:
            return
        self._flags = flags
        chosen: dict[str, Tensor] = dict(self._chosen())
        self._moving = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if name in chosen or (parameter.requires_grad and id(parameter) in held)
        }
        self._before = {}
        if chosen.keys() == self._traced.keys():
            return
        _refuse_complex(chosen)
        self._traced = chosen
        self._questions.trace(chosen)
        if self._train.alone is not None:
            raise TracingError(
                "A Tracer splits a step's gradient into its examples' shares, but the training "
                f"data has no example dimension: {self._train.alone}. Record checkpoints while "
                "training, and score them with tracin.TracIn, which takes such examples one by "
                "one."
            )
        with self._busy():
            example = move(self._train.take([0]), next(iter(chosen.values())).device)
            self._watcher = Watcher(self._model, self._compute, chosen, example)
        self._is_new = True
        self._ends = None
        for name in set(self._grad_handles) - set(chosen):
            self._grad_handles.pop(name).remove()
        for name in set(chosen) - set(self._grad_handles):
            self._grad_handles[name] = chosen[name].register_post_accumulate_grad_hook(
                partial(_see, weakref.ref(self), name)
            )

    def _chosen(self) -> dict[str, Parameter]:
        """The parameters to trace, as far as they are trainable now."""
        if self._selection != LAST:
            return chosen_parameters(self._model, self._selection)
        with self._busy(), untouched(self._model):
            for module in self._model.modules():
                module.training = False  # not through eval(), which some layers override
            device = next(self._model.parameters()).device
            example = content_of(move(self._train.few([0]), device))
            return last_used(self._model, lambda: self._compute(self._model, example))

    def _see(self, name: str, parameter: Tensor) -> None:
        if not self._is_busy and parameter.grad is not None and self._handles:
            self._seen[name] = Seen.of(parameter.grad)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    def _drop_unused(self) -> None:
        """Batches whose gradients were thrown away: mixed precision skipped their step."""
        if not self._pending or any(
            parameter.grad is not None and bool(written(parameter.grad).any())
            for parameter in self._traced.values()
        ):
            return
        if self._scaler is None and any(share.forms for share in self._pending):
            raise TracingError(
                f"A batch of {len(self._pending[-1])} examples was traced, but its gradients were "
                "thrown away (zero_grad) before optimizer.step(). Trace only what is learnt from; "
                "with a GradScaler, which skips steps, give it: Tracer(..., scaler=scaler)."
            )
        self._pending, self._seen, self._calls = [], {}, []
        self._skipped += 1

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._taken = None
        self._hold.take()  # also where no batch was told, or another thread takes the step
        try:
            self._taken = self._looked_at(optimizer, args, kwargs)
        except BaseException:
            self._hold.release()
            raise

    def _looked_at(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Taken | None:
        """The weights, gradients and options of the step that is about to be taken."""
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return None
        self._refuse_failed()
        if not self._open():
            return None
        if self.step % self._every:
            return Taken({}, {}, {}, 1.0)
        if not self._reserve():
            return None
        closures = (*args[1:], kwargs.get("closure"))  # args begin with the optimizer
        if any(closure is not None for closure in closures):
            raise TracingError(
                "optimizer.step(closure) runs its backward passes where the Tracer cannot tell "
                "which of them the step is made of. Call loss.backward() first and then "
                "optimizer.step() without a closure."
            )
        if not self._pending:
            raise TracingError(
                f"optimizer.step() number {self.step} came without a traced batch: put the forward "
                "pass of each batch within tracer.batch(ids). To trace some steps, give every=n."
            )
        self._refuse_changed()
        for share in self._pending:
            share.settle()
        unscale = getattr(optimizer, "grad_scale", None)  # fused optimizers divide on their own
        names = {id(parameter): name for name, parameter in self._traced.items()}
        options: dict[str, Mapping[str, Any]] = {}
        gradients: dict[str, Tensor] = {}
        versions: dict[str, int] = {}
        said = [
            {k: v for k, v in g.items() if k not in ("params", "lr")}
            for g in optimizer.param_groups
        ]
        is_copied = self._overwrites(repr(said)) or unscale is not None
        for group in optimizer.param_groups:
            kept = {key: value for key, value in group.items() if key != "params"}
            for parameter in group["params"]:
                name, gradient = names.get(id(parameter)), parameter.grad
                if name is not None and gradient is not None:
                    options[name], versions[name] = kept, gradient._version
                    is_own = gradient.is_sparse or not is_copied
                    gradients[name] = written(gradient) if is_own else gradient.clone()
        self._refuse_moving_frozen()
        check_shares(self._pending, gradients)
        for share, calls in zip(self._pending, self._calls, strict=False):
            self._audit(share, calls)
        if not self._before:
            self._before = {name: p.detach().clone() for name, p in self._moving.items()}
        if not self._is_probed:
            with self._busy():
                self._factor = loss_factor(
                    self._model, self._compute, self._train, self._pending[0], self._traced
                )
            self._is_probed = True
        scale = float(unscale) if unscale is not None else 1.0
        return Taken(gradients, versions, options, scale)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        taken, self._taken = self._taken, None
        try:
            if taken is not None:
                self._finish(taken)
        finally:
            self._hold.release()

    def _finish(self, taken: Taken) -> None:
        """Share out the step that was taken."""
        if self.step % self._every == 0:
            self._has_failed = True
            self._see_overwriting(taken)
            # The queries are asked at other weights: an interrupt must not leave those.
            guard = Guard(self._model, "a Tracer")
            with self._busy(), guard, guard, torch.no_grad(), self._on_disk():
                self._share_out(taken)
            self._has_failed = False
            self._pending, self._seen, self._calls = [], {}, []
            if self._is_over:
                return
            if self._every == 1:
                for name, parameter in self._moving.items():
                    self._before[name].copy_(parameter.detach())
                self._own_versions = dict(self._versions())
        if self._every > 1:
            self._before, self._ends = {}, None
        self.step += 1

    @property
    def _is_audited(self) -> bool:
        """Whether the next traced step is number 1, 2, 4, 8, ..."""
        count = self._tables.rows + 1
        return count & (count - 1) == 0

    def _audit(self, share: Share, calls: list[Call]) -> None:
        """Measure that each example's share is its own, before the step is taken.

        Raises:
            TracingError: Examples have shares of others.
        """
        if self._watcher is None:
            raise RuntimeError("no watcher")
        inputs = self._model, self._watcher.parameters, self._watcher.trial, len(share)
        try:
            with self._busy():
                run = repeated(self._model, calls)
                for is_eval in (False, True):  # in train mode, examples may depend on each other
                    far = gaps(*inputs, run, seed=self.step, is_eval=is_eval)
                    if not far:
                        break
                if far == {} and not is_eval:
                    return
                if far != {}:
                    device = next(iter(self._watcher.parameters.values())).device
                    batch = move(self._train.take(share.positions.tolist()), device)
                    run = asked(self._model, self._compute, batch)
                    by_loss = gaps(*inputs, run, seed=self.step, is_eval=True)
                    if far is None and by_loss == {}:
                        return
                    if by_loss:
                        raise TracingError(_mixed_up(self.step, far or by_loss))
                reason = "in train mode its examples depend on each other"
        except TracingError:
            raise
        except Exception as error:  # a user's model: whatever fails here did not fail in training
            reason = f"{type(error).__name__}: {error}"
        self._say_unaudited(reason)

    def _say_unaudited(self, reason: str) -> None:
        if not self._is_unaudited:
            self._is_unaudited = True
            warnings.warn(
                f"The shares of step {self.step} could not be audited ({reason}): that they add up "
                "to the gradient is checked, but not that each example has its own. Compare with "
                "tracin.TracIn on a checkpoint.",
                TracingWarning,
                stacklevel=2,
            )

    def _overwrites(self, options: str) -> bool:
        """Whether the gradients must be copied before a step with these options."""
        if options != self._options:
            self._options, self._is_overwriting = options, True
        return self._is_overwriting

    def _see_overwriting(self, taken: Taken) -> None:
        """Copies are made until a step is seen to leave the gradients alone.

        SGD, for one, adds Nesterov's momentum to the gradients themselves with foreach=True.
        """
        changed = []
        for name, version in taken.versions.items():
            now, given = self._traced[name].grad, taken.gradients[name]
            # Fused steps unscale gradients without counting that as a change.
            if (
                now is None
                or now._version != version
                or (now is not given and not torch.equal(written(now), given))
            ):
                changed.append(name)
        if changed and not self._is_overwriting and taken.scale == 1:
            raise TracingError(
                f"The optimizer {type(self._optimizer).__name__} wrote into the gradient of "
                f"{listed(changed)} in step {self.step}, but left it alone in the step before, so "
                "what it was given is lost. Give an optimizer that does one or the other."
            )
        self._is_overwriting = bool(changed)

    def _refuse_moving_frozen(self) -> None:
        """Momentum and weight decay move a frozen parameter for as long as it has a gradient."""
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        moving = [
            names[id(parameter)]
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and not parameter.requires_grad and id(parameter) in names
        ]
        if moving:
            raise TracingError(
                f"{listed(moving)} does not require a gradient, but still holds one from earlier "
                "steps, so the optimizer goes on to move it by momentum and weight decay, for no "
                "example. Take the gradient away when you freeze: parameter.grad = None, or "
                "optimizer.zero_grad() before requires_grad_(False)."
            )

    def _refuse_changed(self) -> None:
        """The weights must be those that the last traced step ended with."""
        if not self._before:
            return
        for name, version in self._versions():
            if version != self._own_versions.get(name) and not torch.equal(
                self._moving[name].detach(), self._before[name]
            ):
                raise TracingError(
                    f"The model changed between two traced steps: '{name}' is not what "
                    f"optimizer.step() number {self.step - 1} left. To load other weights, close "
                    "the Tracer before and open one with a new folder."
                )

    def _versions(self) -> Iterator[tuple[str, int]]:
        for name, parameter in self._moving.items():
            yield name, parameter._version

    def _share_out(self, taken: Taken) -> None:
        updates = {
            name: self._rule(
                StepTaken(
                    taken.options[name],
                    self._optimizer.state[self._traced[name]],
                    self._before[name],
                    gradient / taken.scale if taken.scale != 1 else gradient,
                )
            )
            for name, gradient in taken.gradients.items()
        }
        uses = {
            name: examined(self._pending, name, gradient)
            if self._is_new or name not in self._seen
            else assumed(self._seen[name], gradient, taken.versions[name])
            for name, gradient in taken.gradients.items()
        }
        self._is_new = False
        made = Made(taken, updates, uses)
        rows = []
        for chunk in self._questions.chunks:
            try:
                row, made = self._of_chunk(chunk, made)
            except NonFiniteError:
                # What a training example did to the weights is the reason that helps.
                self._refuse_non_finite(
                    [sum_of_norms(share.forms) for share in self._pending], self._pending
                )
                raise
            rows.append(row)
        self._tell_rest(made)
        self._add_self_influence(made)
        self._tables.steps.append(
            StepRow(
                self.step,
                sum(len(share) for share in self._pending),
                int(self._pending[0].positions[0]),
                _joined([row.before for row in rows]),
                _joined([row.after for row in rows]),
                _joined([row.buffers for row in rows]),
                {
                    path: {part: _joined([row.parts[path][part] for row in rows]) for part in PARTS}
                    for path in self._paths
                },
            )
        )

    def _tell_rest(self, made: Made) -> None:
        """Say once that gradients hold what no example brought."""
        if made.rest > NOTICED and not self._is_told:
            self._is_told = True
            warnings.warn(
                f"{made.rest:.0%} of the gradient at step {self.step} came of no traced batch: a "
                "penalty in the loss, noise, or a backward pass outside of tracer.batch. It is "
                "told apart as 'unattributed' (goodness()), and belongs to no example.",
                TracingWarning,
                stacklevel=2,
            )

    def _of_chunk(self, chunk: range, made: Made) -> "tuple[_ChunkRow, Made]":
        """Add what a step did for some queries to the scores, and give its parts."""
        positions = sorted({position for path in self._paths for position, _ in path.points})
        asked, before, start, after = self._asked(chunk, positions)
        scores = {at: self._scores(asked[at], made) for at in positions}
        for found in scores.values():
            self._refuse_non_finite(found)
        if not self._agree(asked[positions[0]], scores[positions[0]], made):
            made = made.examined(self._pending)
            scores = {at: self._scores(asked[at], made) for at in positions}
        own = {
            at: {part: asked[at].along(terms) for part, terms in made.own.items()}
            for at in positions
        }
        parts: dict[Quadrature, dict[str, Tensor]] = {}
        for path in self._paths:
            total = torch.zeros(len(chunk), dtype=torch.float64)
            for number, share in enumerate(self._pending):
                rows = _weighted([(weight, scores[at][number]) for at, weight in path.points])
                add_rows(
                    self._tables.scores(path)[:, chunk.start : chunk.stop], share.positions, rows
                )
                total += rows.sum(0).cpu().double()
            parts[path] = {
                part: torch.stack([weight * own[at][part] for at, weight in path.points]).sum(0)
                for part in PARTS[1:]
            }
            parts[path][PARTS[0]] = total
        return _ChunkRow(before, after, before - start, parts), made

    def _asked(
        self, chunk: range, positions: Sequence[float]
    ) -> tuple[dict[float, Asked], Tensor, Tensor, Tensor]:
        """The queries along the step; their losses before it, at its start, and after it.

        Before and start differ where running statistics changed since the last step.
        """
        is_kept = len(self._questions.chunks) == 1 and self._every == 1
        buffers = [(id(buffer), buffer._version) for buffer in self._model.buffers()]
        ends = self._ends if is_kept else None
        is_fresh = ends is not None and ends.buffers == buffers
        asked: dict[float, Asked] = {}
        for position in positions:
            if position == 0.0 and is_fresh and ends is not None and ends.asked is not None:
                asked[0.0] = ends.asked
                continue
            with weights_at(self._moving, self._before, position):
                asked[position] = self._questions.ask(chunk)
        if 0.0 in asked:
            start = asked[0.0].losses
        elif is_fresh and ends is not None:
            start = ends.losses
        else:
            with weights_at(self._moving, self._before, 0.0):
                start = self._questions.losses(chunk)
        is_wanted = is_kept and 0.0 in positions  # where the next step begins
        if 1.0 not in asked and is_wanted:
            asked[1.0] = self._questions.ask(chunk)
        after = asked[1.0].losses if 1.0 in asked else self._questions.losses(chunk)
        before = ends.losses if ends is not None else start
        if is_kept:
            self._ends = _Ends(asked.get(1.0), after, buffers)
        return asked, before, start, after

    def _scores(self, asked: Asked, made: Made) -> list[Tensor]:
        """What each micro-batch's examples did for the queries: [examples, queries] each."""
        found = []
        for share in self._pending:
            memo = ProductCache()
            by_scale: dict[float, Tensor] = {}  # most parameters have the same learning rate
            for name, form in share.forms.items():
                scale = made.scales.get(name)
                if scale is None:
                    continue
                key, scaled = (1.0, scale) if isinstance(scale, Tensor) else (scale, None)
                each = asked.products(name, form, scaled, memo)
                if each is not None:
                    by_scale[key] = by_scale[key].add_(each) if key in by_scale else each
            total: Tensor | None = None
            for scale, each in by_scale.items():
                each.mul_(scale)
                total = each if total is None else total.add_(each)
            if total is None:
                total = torch.zeros(len(share), len(asked.losses))
            found.append(total)
        return found

    def _agree(self, asked: Asked, scores: list[Tensor], made: Made) -> bool:
        """Whether the examples' parts add up to the whole gradient's, for one query a step."""
        if made.is_untouched and self.step >= LOOKS and self.step % LOOKS and not self._is_told:
            return True
        query = self.step % len(asked.losses)
        found = sum(float(each[:, query].sum()) for each in scores)
        size = sum(float(each[:, query].abs().sum()) for each in scores)
        wanted = float(asked.only(query).along(made.directions())[0])
        return abs(found - wanted) <= AGREED * size + 1e-12

    def _refuse_non_finite(
        self, found: list[Tensor], shares: Sequence[Share] | None = None
    ) -> None:
        """Name the example whose numbers are NaN or infinite, before they enter the tables."""
        for share, rows in zip(shares or self._pending, found, strict=True):
            wrong = ~torch.isfinite(rows).reshape(len(share), -1).all(1)
            if bool(wrong.any()):
                one = int(share.positions[int(wrong.nonzero()[0])])
                raise NonFiniteError(
                    f"The gradient of training example {self._train.ids.tolist()[one]!r} is NaN or "
                    f"infinite in step {self.step}, as are those of {int(wrong.sum())} of its "
                    f"batch of {len(share)}: the training data or the loss is, or training "
                    "diverges. Leave the example out, or lower the learning rate; the trace holds "
                    "what was saved before."
                )

    def _add_self_influence(self, made: Made) -> None:
        for share in self._pending:
            weights = share.weights
            if weights is None and self._factor is not None:
                weights = torch.full((len(share),), self._factor / len(share), dtype=torch.float64)
            if weights is None:
                self._has_self = False
                return
            total = torch.zeros(len(share), dtype=torch.float64)
            for name, form in share.forms.items():
                if name in made.scales:
                    scale = made.scales[name]
                    if isinstance(scale, Tensor):
                        norms = form.squared_norm_under(scale.flatten())
                    else:
                        norms = form.squared_norm().mul_(scale)
                    total += norms.cpu().double()
            self._refuse_non_finite([total], [share])
            add_rows(self._tables.self_influence, share.positions, total / (weights * share.scale))


@final
@dataclass(frozen=True, eq=False)
class _Ends:
    """What is known of the queries at the end of the last step."""

    asked: Asked | None
    losses: Tensor
    buffers: list[tuple[int, int]]


@final
@dataclass(frozen=True, eq=False)
class _ChunkRow:
    before: Tensor
    after: Tensor
    buffers: Tensor
    parts: dict[Quadrature, dict[str, Tensor]]


def _see(tracer: "weakref.ref[Tracer]", name: str, parameter: Tensor) -> None:
    """Shows a gradient to its Tracer, which the hook must not keep.

    The parameter holds the hook where Python's collector does not look: a Tracer in it, which
    holds the model, would never be collected if it is left unclosed.
    """
    watching = tracer()
    if watching is not None:
        watching._see(name, parameter)


def _refuse_complex(parameters: Mapping[str, Tensor]) -> None:
    found = [name for name, parameter in parameters.items() if parameter.is_complex()]
    if found:
        raise UnsupportedModelError(
            f"'{found[0]}' (with {len(found) - 1} more) is complex, and steps of complex "
            "parameters are not traced. Leave them out by parameters=[...], or score recorded "
            "checkpoints with tracin.TracIn, which takes them."
        )


def _mixed_up(step: int, far: Mapping[str, float]) -> str:
    name, gap = max(far.items(), key=lambda one: one[1])
    return (
        f"In step {step} the examples' shares of the gradient of {listed(far)} are not their own "
        f"(for '{name}' off by {gap:.1e} of the gradient): the model moves examples within a batch "
        "in a way that is not seen, such as sorting outside of torch. Leave these parameters out "
        "(parameters=), or use tracin.TracIn on checkpoints, which goes another way there."
    )


def _weighted(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The sum of weight x tensor."""
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    total = terms[0][0] * terms[0][1]
    for weight, tensor in terms[1:]:
        total.add_(tensor, alpha=weight)
    return total


def sum_of_norms(forms: Mapping[str, PerExampleGradient]) -> Tensor:
    """The squared length of each example's gradient over all parameters: [examples]."""
    return torch.stack([form.squared_norm().cpu().double() for form in forms.values()]).sum(0)


def _joined(chunks: list[Tensor]) -> Tensor:
    return torch.cat(chunks) if chunks else torch.zeros(0)


def _traceable(model: Module) -> Module:
    """The model within a wrapper that passes whole batches on, in one process."""
    is_divided = isinstance(model, DataParallel) and len(model.device_ids) > 1
    is_parallel = isinstance(model, DistributedDataParallel) and get_world_size() > 1
    if is_divided or is_parallel or hasattr(model, "_orig_mod"):
        kind = type(model).__name__
        raise UnsupportedModelError(
            f"The model is wrapped in {kind}, within which a step's examples cannot be seen. Trace "
            "the model itself, uncompiled, in one process."
        )
    return unwrapped(model)


def _said(parameters: Selection) -> tuple[str, ...]:
    """Which parameters were asked for; nothing for all."""
    if parameters is None:
        return ()
    return (parameters,) if isinstance(parameters, str) else tuple(parameters)
