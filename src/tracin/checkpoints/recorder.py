"""Checkpoints with the learning rates that were really used, from a person's own training loop."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.atomic import remove_unfinished
from tracin.checkpoints.checkpoint import Checkpoint
from tracin.checkpoints.names import without_wrappers
from tracin.checkpoints.record import Entry, Record, has_record, read_record, write_record
from tracin.checkpoints.safetensors_files import read_shapes, write_safetensors
from tracin.checkpoints.state_dicts import listed
from tracin.checkpoints.step_log import Segment, StepLog
from tracin.errors import CheckpointError, CheckpointWarning


class Recorder:
    """Saves checkpoints while a model trains, with the learning rate of every step.

    It listens to the optimizer and changes nothing: training with it and without gives the same
    weights, bit for bit. The folder gets one `.safetensors` file a checkpoint and a small
    `recorder.json`; each is written whole or not at all.

    A Recorder on a folder that has checkpoints of this model goes on after the last one. Put its
    weights into the model (`recorder.latest().weights()`), and your own saved state into the
    optimizer, before the first step. Steps that a broken run took after its last checkpoint leave
    the log, since training repeats them.

    Attributes:
        step: The number of optimizer steps so far.
        epochs: The number of times `epoch` was called so far.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer, holding every parameter of the model that requires a gradient.
        folder: Where to write; made if it is not there.
        every: "epoch" to save when `epoch` is called, or a number n to save after each n-th
            optimizer step.

    Raises:
        CheckpointError: The optimizer trains another model, the folder has the checkpoints of
            another model, or `every` is neither of the two. Also at the first step, if the model
            does not hold the weights that the folder's log ends with.

    Example:
        >>> import tempfile, torch, tracin
        >>> folder = tempfile.mkdtemp()
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tracin.Recorder(model, optimizer, folder) as recorder:
        ...     for epoch in range(3):
        ...         model(torch.ones(4, 2)).sum().backward()
        ...         optimizer.step()
        ...         _ = recorder.epoch()
        >>> recorder.latest()
        Checkpoint(learning_rate=0.1, name='step-00000003.safetensors', step=3)
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        folder: str | Path,
        every: Literal["epoch"] | int = "epoch",
    ) -> None:
        is_number = isinstance(every, int) and not isinstance(every, bool) and every > 0
        if every != "epoch" and not is_number:
            raise CheckpointError(
                f'every must be "epoch" or a positive number of steps; {every!r} was given.'
            )
        if not isinstance(optimizer, Optimizer):
            raise CheckpointError(
                "The Recorder listens to a torch.optim.Optimizer; a "
                f"{type(optimizer).__name__} was given. Of a wrapper, give the one within."
            )
        self._model, self._optimizer, self._every = model, optimizer, every
        self._refuse_other_optimizer()
        self._folder = Path(folder).expanduser()
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self._folder)
        self._entries: list[Entry] = []
        self._closed_segments: tuple[Segment, ...] = ()
        self._groups: tuple[tuple[str, ...], ...] = ()
        self._runs: list[tuple[int, tuple[float, ...]]] = []
        self._sizes: tuple[int, ...] = ()
        self._rates: tuple[float, ...] | None = None
        self.step = 0
        self.epochs = 0
        if has_record(self._folder):
            self._resume()
        self._is_checked = not self._entries
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def epoch(self) -> Path | None:
        """Say that an epoch is over; with `every="epoch"`, save a checkpoint.

        Returns:
            The file that was written, if one was.
        """
        self.epochs += 1
        return self.save() if self._every == "epoch" else None

    def save(self) -> Path:
        """Save a checkpoint now.

        Returns:
            The file that was written: `step-00000120.safetensors` after 120 steps.

        Raises:
            CheckpointError: The model's state dict holds something else than tensors.
        """
        state = {key: value for key, value in self._model.state_dict().items() if value is not None}
        others = [key for key, value in state.items() if not isinstance(value, Tensor)]
        if others:
            raise CheckpointError(
                f"Only tensors can be saved, but the model's state dict holds {listed(others)}. "
                "Keep such state outside of the model."
            )
        path = self._folder / f"step-{self.step:08d}.safetensors"
        write_safetensors(state, path)
        last = self._runs[-1] if self._runs else None
        if last is None and self._closed_segments:
            last = self._closed_segments[-1].runs[-1]
        entry = Entry(path.name, self.step, self.epochs, last[1] if last else ())
        entries = [one for one in self._entries if one.step != self.step]
        self._entries = [*entries, entry]
        write_record(self._record())
        return path

    def latest(self) -> Checkpoint | None:
        """The last checkpoint in the folder, to go on from; None where there is none."""
        return self._record().checkpoint(self._entries[-1]) if self._entries else None

    def close(self) -> None:
        """Stop listening, and write down the steps since the last checkpoint."""
        if self._stop() and self.step and not self._entries:
            warnings.warn(
                f"{self.step} steps were recorded in {self._folder}, but no checkpoint was saved: "
                "call recorder.epoch() at the end of each epoch, or recorder.save().",
                CheckpointWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error in training, a warning would only stand in its way.
        if error is None:
            self.close()
        else:
            self._stop()

    def _stop(self) -> bool:
        """Stop listening and write the log; False where that was done before."""
        if not self._handles:
            return False
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.step or self._entries:
            write_record(self._record())
        return True

    def _refuse_other_optimizer(self) -> None:
        """Every trainable parameter must be in the optimizer: else its rate would be made up."""
        held = {id(one) for group in self._optimizer.param_groups for one in group["params"]}
        trainable = {
            name: id(one) for name, one in self._model.named_parameters() if one.requires_grad
        }
        missing = [name for name, key in trainable.items() if key not in held]
        if missing:
            raise CheckpointError(
                "The optimizer must hold every trainable parameter of the model; "
                f"{len(missing)} of {len(trainable)} are not in it: {listed(missing)}. Make the "
                "optimizer from this model's parameters, after the model is moved and wrapped, "
                "and freeze what is not trained: parameter.requires_grad_(False)."
            )

    def _resume(self) -> None:
        """Go on after the last checkpoint in the folder."""
        record = read_record(self._folder)
        if not record.entries:
            return
        last = record.entries[-1]
        record.checkpoint(last)
        self._refuse_other_model(self._folder / last.file)
        self._entries = list(record.entries)
        self._closed_segments = record.log.until(last.step).segments
        self.step, self.epochs = last.step, last.epoch

    def _refuse_other_model(self, path: Path) -> None:
        """The folder's checkpoints must be of a model like this one."""
        theirs = without_wrappers(read_shapes(path))
        ours = without_wrappers(
            {
                name: tuple(value.shape)
                for name, value in self._model.state_dict().items()
                if isinstance(value, Tensor)
            }
        )
        differing = [
            f"{name} is {said(theirs.get(name))} there and {said(ours.get(name))} here"
            for name in dict.fromkeys([*ours, *theirs])
            if theirs.get(name) != ours.get(name)
        ]
        if differing:
            more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise CheckpointError(
                f"{self._folder} has checkpoints of another model: {'; '.join(differing[:3])}"
                f"{more}. Give a new folder."
            )

    def _refuse_other_weights(self) -> None:
        """A log is true only if training goes on from the weights that it ends with."""
        latest = self.latest()
        saved = latest.weights() if latest else {}
        ours: Mapping[str, Tensor] = without_wrappers(
            dict(self._model.named_parameters(remove_duplicate=False))
        )
        # Buffers are left out: a forward pass before the first step may have changed them.
        differing = [
            name
            for name, parameter in ours.items()
            if name in saved and not torch.equal(saved[name], parameter.detach().cpu())
        ]
        if differing:
            raise CheckpointError(
                f"{self._folder} has checkpoints up to step {self.step}, but the model does not "
                f"hold the last one's weights: {listed(differing)} differ. To go on, load "
                "recorder.latest().weights() into the model before the first step; to start "
                "afresh, give a new folder."
            )

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """See the rates of the step that is about to be taken."""
        if not self._is_checked:
            self._refuse_other_weights()
            self._is_checked = True
        # With gradient scaling, a fused optimizer is called for steps that it then skips.
        found_inf = getattr(optimizer, "found_inf", None)
        is_skipped = found_inf is not None and bool(found_inf)
        self._rates = (
            None if is_skipped else tuple(float(one["lr"]) for one in optimizer.param_groups)
        )

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Count the step that was taken."""
        if self._rates is None:
            return
        sizes = tuple(len(group["params"]) for group in optimizer.param_groups)
        if sizes != self._sizes:
            self._begin_segment(sizes)
        if self._runs and self._runs[-1][1] == self._rates:
            self._runs[-1] = (self._runs[-1][0] + 1, self._rates)
        else:
            self._runs.append((1, self._rates))
        self._rates = None
        self.step += 1
        if isinstance(self._every, int) and self.step % self._every == 0:
            self.save()

    def _begin_segment(self, sizes: tuple[int, ...]) -> None:
        """Take down who is in which group, now and whenever a group was added."""
        self._closed_segments = self._segments()
        names = {id(one): name for name, one in self._model.named_parameters()}
        self._groups = tuple(
            tuple(names[id(one)] for one in group["params"] if id(one) in names)
            for group in self._optimizer.param_groups
        )
        self._runs, self._sizes = [], sizes

    def _segments(self) -> tuple[Segment, ...]:
        """All segments of the log so far."""
        if not self._runs:
            return self._closed_segments
        return (*self._closed_segments, Segment(self._groups, tuple(self._runs)))

    def _record(self) -> Record:
        """What there is to write down."""
        return Record(tuple(self._entries), StepLog(self._folder.resolve(), self._segments()))


def said(shape: tuple[int, ...] | None) -> str:
    """A shape in words."""
    return "missing" if shape is None else str(list(shape))
