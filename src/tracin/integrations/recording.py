"""A Recorder inside another trainer, which says itself at which step it resumes."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints import Recorder
from tracin.checkpoints.companions import Companions
from tracin.checkpoints.fitting import refuse_other_weights
from tracin.checkpoints.record import FILE, CheckpointLog, read_record, write_record
from tracin.checkpoints.schedule import refuse_other_moments
from tracin.errors import CheckpointError, CheckpointWarning
from tracin.plain_text import plain


@dataclass(frozen=True)
class RecorderSettings:
    """The options of a Recorder, before there is a model and an optimizer.

    Attributes:
        folder: As for `tracin.Recorder`, like all that follow.
        every: When to save.
        every_n_epochs: Save at each n-th epoch only.
        keep: How many checkpoints to keep.
        optimizer_state: Whether the optimizer's moments are written; None for Adam's alone.
        averaged: A model with averaged weights.
        frozen_weights: Whether weights that take no steps are written.

    Raises:
        CheckpointError: An option cannot be.
    """

    folder: Path
    every: Literal["epoch"] | int
    every_n_epochs: int
    keep: int | None
    optimizer_state: bool | None
    averaged: Module | None
    frozen_weights: bool = False

    def __str__(self) -> str:
        often = f"{self.every} steps" if isinstance(self.every, int) else self.every
        if self.every_n_epochs > 1:
            often = f"{self.every_n_epochs} epochs"
        return f"{plain(self.folder)}, every {often}"

    def __post_init__(self) -> None:
        refuse_other_moments(self.every, self.every_n_epochs, self.keep)

    def begin(self, model: Module, optimizer: Optimizer, step: int, scaler: Any) -> Recorder:
        """Open the Recorder, going on where the trainer does.

        A trainer that was stopped resumes at its own last checkpoint, mostly an earlier one than
        the Recorder's: then what was recorded later is deleted, since training repeats it.

        Args:
            model: The bare model, holding the weights that training resumes from.
            optimizer: The bare optimizer.
            step: The step at which the trainer resumes; 0 where it begins.
            scaler: The GradScaler of mixed precision, if there is one.

        Raises:
            CheckpointError: The folder cannot be resumed at this step.
        """
        if step:
            self._go_back(model, step)
        return Recorder(
            model,
            optimizer,
            self.folder,
            self.every,
            every_n_epochs=self.every_n_epochs,
            keep=self.keep,
            optimizer_state=self.optimizer_state,
            averaged=self.averaged,
            scaler=scaler,
            frozen_weights=self.frozen_weights,
        )

    def _go_back(self, model: Module, step: int) -> None:
        """Make the folder's last checkpoint that of this step."""
        record = read_record(self.folder) if (self.folder / FILE).is_file() else None
        if record is None or not record.entries:
            warnings.warn(
                f"Training resumes at step {step}, and {self.folder} has no checkpoint yet: the "
                "steps before are not recorded, and steps are counted from here.",
                CheckpointWarning,
                stacklevel=2,
            )
            return
        if record.entries[-1].step == step:
            return
        entry = next((one for one in record.entries if one.step == step), None)
        if entry is None:
            raise self._no_checkpoint(record, step)
        # Before anything is deleted: is this the same training?
        refuse_other_weights(model, record.checkpoint(entry), self.folder)
        kept = tuple(one for one in record.entries if one.step <= step)
        losses = tuple(one for one in record.losses if one[0] <= step)
        write_record(replace(record, entries=kept, log=record.log.until(step), losses=losses))
        companions = Companions(self.folder, model, None, None)
        for one in record.entries[len(kept) :]:
            companions.delete(one.file)

    def _no_checkpoint(self, record: CheckpointLog, step: int) -> CheckpointError:
        steps = [one.step for one in record.entries]
        shown = ", ".join(map(str, steps if len(steps) <= 4 else [*steps[:2], "...", steps[-1]]))
        return CheckpointError(
            f"Training resumes at step {step}, and the Recorder can resume at a checkpoint of "
            f"that very step, but {self.folder} has those of steps {shown}. Save both at the same "
            "steps (every=n and the trainer's saving every n steps, or both at epochs' ends), "
            "resume from a step that both have, or give a new folder. Steps that mixed precision "
            "skips count for the trainer alone."
        )
