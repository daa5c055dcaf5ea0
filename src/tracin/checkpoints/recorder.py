"""Record checkpoints, with the learning rates really used, from the user's own training loop."""

import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch.distributed
from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.adam_kind import ADAM_KINDS
from tracin.checkpoints.applied_adapters import scales_metadata
from tracin.checkpoints.checkpoint import Checkpoint
from tracin.checkpoints.companions import Companions, tensors
from tracin.checkpoints.fitting import (
    bare_optimizer,
    refuse_other_model,
    refuse_other_optimizer,
    refuse_other_weights,
)
from tracin.checkpoints.folder_lock import FolderLock
from tracin.checkpoints.frozen_part import FrozenPart
from tracin.checkpoints.frozen_weights import FrozenWeights
from tracin.checkpoints.readers.safetensors import read_shapes, write_safetensors
from tracin.checkpoints.record import (
    AVERAGED,
    FILE,
    OPTIMIZER,
    THAWED,
    CheckpointLog,
    LogEntry,
    ThawedFile,
    file_of,
    read_record,
    write_record,
)
from tracin.checkpoints.schedule import finite, kept, refuse_other_moments
from tracin.checkpoints.step_log import RateLog, StepLog, TrainedNames
from tracin.checkpoints.token_count import TokenCount
from tracin.checkpoints.visits import FOLDER as VISITS
from tracin.checkpoints.visits import VisitLog
from tracin.errors import CheckpointError, CheckpointWarning
from tracin.files import made_folder, remove_unfinished, writing
from tracin.guards import owned
from tracin.plain_text import many, plain
from tracin.wrappers import unwrapped

INNER = (OPTIMIZER, AVERAGED, THAWED, VISITS)  # folders within the Recorder's


class Recorder:
    """Saves checkpoints while a model trains, with the learning rate of every step.

    It listens to the optimizer and changes nothing: training with it and without gives the same
    weights, bit for bit. The folder gets one `.safetensors` file per checkpoint and a small
    `recorder.json`; each is written whole or not at all. Optional parts lie in folders within:
    `optimizer/`, `averaged/` and `thawed/`, with files of the checkpoints' names, and `visits/`.

    A Recorder on a folder that has checkpoints of this model resumes after the last one. Put its
    weights into the model (`recorder.latest().weights()`), and your own saved state into the
    optimizer, the averaged model and the random generators, before the first step; the
    optimizer's is also in `recorder.latest().optimizer_state()`, if it was written. Steps that a
    broken run took after its last checkpoint leave the log, since training repeats them.

    Weights that take no steps are not written: those that require no gradient and are not in the
    optimizer. A checkpoint of LoRA is as small as its adapter, and the base may be quantised. The
    file keeps checksums of them, and loading refuses a model in which they are others. A weight
    that is trained only later is written once more when that begins, for the checkpoints before.

    A folder has one Recorder at a time: a second one is refused, also of another process. Of the
    processes of a parallel training (torch.distributed, or the variable RANK) the first one
    records; in the others a Recorder counts steps and writes nothing.

    Attributes:
        step: The number of optimizer steps so far.
        epochs: The number of times `epoch` was called so far.
        token_count: What a trainer's callback counts the tokens of batches in, to be written down.

    Args:
        model: The model that is trained, or a wrapper around it (DistributedDataParallel, ...).
        optimizer: Its optimizer, holding every parameter of the model that requires a gradient.
        folder: Where to write; made if it is not there.
        every: "epoch" to save when `epoch` is called, or a number n to save after each n-th
            optimizer step.
        every_n_epochs: With `every="epoch"`, save at each n-th call of `epoch` only.
        keep: How many checkpoints to keep: those with the largest loss reductions since the save
            before. Every save then needs the loss. The last checkpoint is always kept, to
            resume from, so there may be one more; the first one, with no loss before it, counts
            as the smallest reduction.
        optimizer_state: Whether the optimizer's moments are written with each checkpoint, for
            `Checkpoint.optimizer_state`. By default those of Adam and AdamW are, which
            `tracin.Adam` needs; they take twice the space of the trained weights.
        averaged: A model with averaged weights (EMA), such as torch's `AveragedModel`, to be saved
            at the same moments. `tracin.open_checkpoints(folder / "averaged")` opens these; the
            folder itself still opens the trained weights. The number of models that
            `AveragedModel` has averaged is not saved.
        scaler: The GradScaler of mixed precision, if there is one and `batch` is called: the ids
            of steps that it skips are dropped. Most optimizers are not called for these, so
            that without it such ids would count for the next step.
        frozen_weights: Also write the weights that take no steps, with every checkpoint: for a
            base that cannot be built again, such as random weights without a seed.

    Raises:
        CheckpointError: The optimizer trains another model, the folder has the checkpoints of
            another model or another Recorder, the folder cannot be written to, or an option cannot
            be. Also at the first step, if the model does not hold the weights that the folder's
            log ends with.

    Example:
        >>> import tempfile, torch, tracin
        >>> folder = tempfile.mkdtemp()
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tracin.Recorder(model, optimizer, folder) as recorder:
        ...     for epoch in range(3):
        ...         recorder.batch([0, 1, 2, 3])
        ...         model(torch.ones(4, 2)).sum().backward()
        ...         optimizer.step()
        ...         _ = recorder.epoch(loss=1 / (epoch + 1))
        >>> recorder.latest()
        Checkpoint(learning_rate=0.1, name='step-00000003.safetensors', step=3)
        >>> recorder.losses
        [(1, 1, 1.0), (2, 2, 0.5), (3, 3, 0.3333333333333333)]
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        folder: str | Path,
        every: Literal["epoch"] | int = "epoch",
        *,
        every_n_epochs: int = 1,
        keep: int | None = None,
        optimizer_state: bool | None = None,
        averaged: Module | None = None,
        scaler: Any = None,
        frozen_weights: bool = False,
    ) -> None:
        refuse_other_moments(every, every_n_epochs, keep)
        model, optimizer = unwrapped(model), bare_optimizer(optimizer, "Recorder", CheckpointError)
        refuse_other_optimizer(model, optimizer)
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._every, self._every_n_epochs, self._keep = every, every_n_epochs, keep
        self._folder = made_folder(folder, CheckpointError)
        self._is_writing = is_first_rank()
        self._entries: list[LogEntry] = []
        self._losses: list[tuple[int, int, float]] = []
        self._log = RateLog(model, optimizer)
        self._trained = TrainedNames(model, optimizer)
        self._rates: tuple[float, ...] | None = None
        self._scale = 1.0
        self.step = 0
        self.epochs = 0
        self.token_count: TokenCount | None = None
        with writing(self._folder, CheckpointError):
            self._lock = self._locked()
            try:
                averaged = averaged if self._is_writing else None
                self._begin(averaged, optimizer_state, frozen_weights)
            except BaseException:
                self._release()
                raise
        self._is_checked = not self._entries
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def __repr__(self) -> str:
        return (
            f"Recorder({type(self._model).__name__}, {many(len(self._entries), 'checkpoint')}, "
            f"{many(self.step, 'step')} so far, {plain(self._folder)})"
        )

    @property
    def losses(self) -> list[tuple[int, int, float]]:
        """(step, epoch, loss) of all saves that were given a loss, also where the file is gone."""
        return list(self._losses)

    def batch(self, ids: Any) -> None:
        """Record which training examples a micro-batch holds, before or after its backward pass.

        All ids given since the last optimizer step belong to the next one. They are written with
        the random state at the first of these calls, for `tracin.Visits`.

        Args:
            ids: Whole numbers or strings, in a list, a tensor or an array; one may come again.

        Raises:
            CheckpointError: They are something else. Also at a step that has no ids where others
                have some.
        """
        if not self._is_writing:
            return
        if self._scaler is not None:
            scale = float(self._scaler.get_scale())
            # While ids wait for their step, the scale changes only if that step was skipped.
            if self._visits.has_pending and scale != self._scale:
                self._visits.drop()
            self._scale = scale
        self._visits.add(ids)

    def epoch(self, loss: float | None = None) -> Path | None:
        """Count an epoch; with `every="epoch"`, save a checkpoint if one is due.

        Args:
            loss: The training loss at this moment; written down if a checkpoint is saved.

        Returns:
            The file that was written, if one was.

        Raises:
            CheckpointError: As from `save`.
        """
        loss = finite(loss)
        is_due = self._every == "epoch" and (self.epochs + 1) % self._every_n_epochs == 0
        if is_due:
            self._refuse_without(loss)
        self.epochs += 1
        return self.save(loss) if is_due else None

    def save(self, loss: float | None = None) -> Path | None:
        """Save a checkpoint now.

        Args:
            loss: The training loss at this moment; needed where `keep` is set.

        Returns:
            The file that was written: `step-00000120.safetensors` after 120 steps. None in a
            process that does not record.

        Raises:
            CheckpointError: The model's state dict holds something else than tensors, the loss is
                not finite, or it is missing; no step was taken yet, and the model does not hold
                the weights that the folder's log ends with; or the disk is full.
            ModelInUseError: Another thread holds the model indefinitely.
        """
        loss = finite(loss)
        self._refuse_without(loss)
        if not self._is_writing:
            return None
        # A pass in another thread has a checkpoint's weights in the model.
        with owned(self._model, "a Recorder that saves", is_brief=True):
            self._refuse_other_weights()
            with writing(self._folder, CheckpointError):
                return self._write(loss)

    def _write(self, loss: float | None) -> Path:
        """Write a checkpoint, then the record that lists it, then delete what the record lacks."""
        name = file_of(self.step)
        self._write_thawed()
        left_out = self._frozen.left_out()
        weights = tensors(self._model, left_out)
        head = left_out.metadata() | scales_metadata(self._model)
        checksum = write_safetensors(weights, self._folder / name, head)
        checksums = self._companions.write(name, left_out)
        self._visits.flush()
        self._trained.look()
        self._add_entry(name, loss, (checksum, *checksums))
        dropped: list[LogEntry] = []
        if self._keep is not None:
            chosen = kept(self._entries, self._losses, self._keep)
            dropped = [one for one in self._entries if one not in chosen]
            self._entries = chosen
        write_record(self._record())
        self._visits.delete_others()
        for one in dropped:
            self._companions.delete(one.file)
        return self._folder / name

    def _write_thawed(self) -> None:
        """Write what earlier checkpoints leave out, and is trained from now on."""
        thawed = self._frozen.thawed()
        if not thawed:
            return
        folder = self._folder / THAWED
        folder.mkdir(exist_ok=True)
        path = folder / file_of(self.step)
        checksum = write_safetensors({name: one.detach() for name, one in thawed.items()}, path)
        self._thawed = [*self._thawed, ThawedFile(path, self.step, checksum)]

    def latest(self) -> Checkpoint | None:
        """The last checkpoint in the folder, to resume from; None if there is none."""
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
        try:
            if self._is_writing and (self.step or self._entries):
                with writing(self._folder, CheckpointError):
                    self._visits.flush()
                    write_record(self._record())
                    self._visits.delete_others()
        finally:
            self._release()
        return self._is_writing

    def _locked(self) -> FolderLock | None:
        """The right to write, where this process writes."""
        if not self._is_writing:
            return None
        return FolderLock(self._folder, "Recorder", CheckpointError)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _begin(
        self, averaged: Module | None, optimizer_state: bool | None, frozen_weights: bool
    ) -> None:
        """Find what is there already, and clean up after a process that was killed."""
        if self._is_writing:
            for folder in (self._folder, *(self._folder / name for name in INNER)):
                remove_unfinished(folder)
        if optimizer_state is None:
            optimizer_state = has_adam_moments(self._model, self._optimizer)
        moments = self._optimizer if optimizer_state else None
        self._companions = Companions(self._folder, self._model, moments, averaged)
        self._frozen = FrozenPart(self._model, self._optimizer, frozen_weights)
        self._thawed: list[ThawedFile] = []
        record = read_record(self._folder) if (self._folder / FILE).is_file() else None
        if record is not None and record.entries:
            self._resume(record, frozen_weights)
        listed = record.visits if record is not None and record.entries else ()
        self._visits = VisitLog(self._folder / VISITS, listed, self.step)

    def _resume(self, record: CheckpointLog, frozen_weights: bool) -> None:
        """Resume after the last checkpoint in the folder."""
        last = record.entries[-1]
        record.checkpoint(last)
        refuse_other_model(self._model, self._folder / last.file)
        unknown = [one.file for one in record.entries if one.loss is None]
        if self._keep is not None and unknown:
            raise CheckpointError(
                f"keep={self._keep} ranks checkpoints by their losses, but {len(unknown)} of "
                f"{len(record.entries)} in {self._folder} were saved without one, the first being "
                f"{unknown[0]}. Resume without keep, or give a new folder."
            )
        self._entries, self._losses = list(record.entries), list(record.losses)
        self._log = RateLog(self._model, self._optimizer, record.log.until(last.step).segments)
        self._trained = TrainedNames(self._model, self._optimizer, record.trained)
        self.step, self.epochs = last.step, last.epoch
        path = self._folder / last.file
        self._frozen = FrozenPart(
            self._model,
            self._optimizer,
            frozen_weights,
            list(read_shapes(path)),
            FrozenWeights.read(path),
        )
        # Training repeats what came after the last checkpoint.
        self._thawed = [one for one in record.thawed if one.step < last.step]
        if not self._is_writing:
            return
        # A process that was killed after it wrote the record may have left what that dropped.
        listed = {one.file for one in record.entries}
        for name in {file_of(step) for step, _, _ in record.losses} - listed:
            self._companions.delete(name)

    def _refuse_without(self, loss: float | None) -> None:
        """Refuse a save without a loss where `keep` ranks checkpoints by it."""
        if self._keep is not None and loss is None:
            raise CheckpointError(
                f"keep={self._keep} ranks checkpoints by how far the loss went down, but no loss "
                "was given: call recorder.epoch(loss=...) or recorder.save(loss=...) with the "
                "training loss at that moment."
            )

    def _refuse_other_weights(self) -> None:
        """Once, before anything is added to what an earlier run has written."""
        if not self._is_checked:
            refuse_other_weights(self._model, self.latest(), self._folder)
            self._is_checked = True

    def _add_entry(self, name: str, loss: float | None, checksums: tuple[str, str, str]) -> None:
        """List the checkpoint of this moment; one of the same step is replaced."""
        if loss is not None:
            earlier = [one for one in self._losses if one[0] != self.step]
            self._losses = [*earlier, (self.step, self.epochs, loss)]
        elif self._losses and self._losses[-1][0] == self.step:
            loss = self._losses[-1][2]
        entries = [one for one in self._entries if one.step != self.step]
        entry = LogEntry(name, self.step, self.epochs, self._log.last, loss, *checksums)
        self._entries = [*entries, entry]

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """See the rates of the step that is about to be taken."""
        # With gradient scaling, a fused optimizer is called for steps that it then skips.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            self._rates = None
            self._visits.drop()
            return
        if not self._is_writing:
            self._rates = ()
            return
        self._refuse_other_weights()
        with writing(self._folder, CheckpointError):
            self._write_thawed()
        # A closure may yet give the ids of the step that calls it.
        if not (len(args) > 1 or kwargs.get("closure")):
            self._visits.check(self.step)
        self._rates = self._log.rates()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Count the step that was taken."""
        if self._rates is None:
            return
        if not self._is_writing:
            self._rates = None
            self.step += 1
            return
        self._visits.check(self.step)
        self._log.add(self._rates)
        self._trained.look()
        with writing(self._folder, CheckpointError):
            self._visits.take()
        self._rates = None
        self.step += 1
        if isinstance(self._every, int) and self.step % self._every == 0:
            self.save()

    def _record(self) -> CheckpointLog:
        """What there is to write down."""
        log = StepLog(self._folder.resolve(), self._log.segments())
        tokens = self.token_count.per_example() if self.token_count is not None else None
        return CheckpointLog(
            tuple(self._entries),
            log,
            tuple(self._losses),
            self._trained.names(),
            self._visits.listed(),
            tuple(self._thawed),
            type(self._optimizer).__name__,
            tokens,
        )


def has_adam_moments(model: Module, optimizer: Optimizer) -> bool:
    """Whether it is Adam or AdamW, over parameters of this model alone."""
    ours = set(map(id, model.parameters()))
    held = [id(one) for group in optimizer.param_groups for one in group["params"]]
    return type(optimizer).__name__ in ADAM_KINDS and ours.issuperset(held)


def is_first_rank() -> bool:
    """Whether this is the only process of a training, or the first of several.

    Asked of torch.distributed where it is initialised, else of the environment variable RANK, as
    torchrun sets it.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("RANK", "0") in ("", "0")
