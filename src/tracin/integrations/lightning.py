"""Lightning's Trainer: a callback that records, and the `.ckpt` files of runs without it."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints import Checkpoint, Recorder
from tracin.checkpoints.adam_kind import adam_kind
from tracin.checkpoints.rate import Rate
from tracin.checkpoints.readers.lightning import is_lightning, lightning_optimizer, lightning_rate
from tracin.checkpoints.readers.spread_state import spread_by
from tracin.checkpoints.readers.torch import read_torch
from tracin.checkpoints.state_dict import weights_within
from tracin.errors import (
    CheckpointError,
    CheckpointWarning,
    LearningRateError,
    UnsupportedModelError,
)
from tracin.extras import install_line
from tracin.integrations.module_groups import Groups, module_groups
from tracin.integrations.recording import RecorderSettings

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback, LightningModule, Trainer
    except ImportError:
        try:
            from pytorch_lightning import Callback, LightningModule, Trainer
        except ImportError as error:
            raise ImportError(
                "tracin.integrations.lightning needs lightning, which is not installed: "
                f"{install_line('lightning')}."
            ) from error

SUFFIX = ".ckpt"
OUTSIDE = ":"  # before the names of parameters that the model asked about does not have
CONSOLIDATE = {
    "FSDP": "Make one file of it by 'python -m lightning.pytorch.utilities.consolidate_checkpoint "
    "FOLDER', or record with another strategy.",
    "DeepSpeed": "Make one file of the weights by lightning.pytorch.utilities.deepspeed."
    "convert_zero_checkpoint_to_fp32_state_dict(folder, file); it has no moments, for which "
    "training with another strategy and TracInCallback is the way.",
}


class TracInCallback(Callback):
    """Records checkpoints while Lightning's Trainer trains.

    Each checkpoint comes with the learning rate really used in its step, whatever schedulers do;
    with accumulated gradients a step is one of the optimizer's. The model is the LightningModule:
    give that one to `tracin.TracIn`, and open the folder by `tracin.open_checkpoints(folder)`. Of
    several processes the first one records.

    With `trainer.fit(..., ckpt_path=...)` recording resumes too. Lightning's checkpoint is mostly
    an earlier one than the Recorder's last: what was recorded after it is then deleted, since
    training repeats those steps. For this both must have saved at the step that is resumed from:
    give `every=n` with `ModelCheckpoint(every_n_train_steps=n)`, or save both at epochs' ends.

    Attributes:
        recorder: The Recorder at work; None when nothing is trained.

    Args:
        folder: Where to write.
        every: "epoch" to save at each epoch's end, or a number n to save after each n-th step.
        every_n_epochs: With `every="epoch"`, save at each n-th epoch only.
        keep: How many checkpoints to keep: those with the largest reductions of the training
            loss, the mean of what `training_step` returned during an epoch.
        optimizer_state: Whether the optimizer's moments are written with each checkpoint; by
            default those of Adam and AdamW, for `tracin.Adam`.
        averaged: A model with averaged weights, to be saved at the same moments.
        frozen_weights: Also write the weights that take no steps, with every checkpoint.

    Raises:
        CheckpointError: An option cannot be; when training begins, also with several optimizers,
            or where the folder has checkpoints of another model or cannot be resumed.
        UnsupportedModelError: When training begins, with weights spread over processes.
    """

    def __init__(
        self,
        folder: str | Path,
        every: Literal["epoch"] | int = "epoch",
        *,
        every_n_epochs: int = 1,
        keep: int | None = None,
        optimizer_state: bool | None = None,
        averaged: Module | None = None,
        frozen_weights: bool = False,
    ) -> None:
        self._recording = RecorderSettings(
            Path(folder).expanduser(),
            every,
            every_n_epochs,
            keep,
            optimizer_state,
            averaged,
            frozen_weights,
        )
        self._losses: list[Tensor] = []
        self.recorder: Recorder | None = None

    def __repr__(self) -> str:
        return f"TracInCallback({self._recording})"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the Recorder on the module and its bare optimizer."""
        self._close()
        if not trainer.is_global_zero:
            return
        refuse_spread(pl_module)
        optimizer = only_optimizer(trainer.optimizers)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.recorder = self._recording.begin(pl_module, optimizer, trainer.global_step, scaler)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take down the training loss."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self.recorder is not None and isinstance(loss, Tensor):
            # Lightning has divided it, to add up gradients over micro-batches.
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so to the Recorder."""
        losses, self._losses = self._losses, []
        if self.recorder is not None:
            self.recorder.epoch(float(torch.stack(losses).mean()) if losses else None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down the last steps."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop listening, and write down the last steps."""
        recorder, self.recorder, self._losses = self.recorder, None, []
        if recorder is not None:
            # Says nothing of what was not saved, which would stand in the exception's way.
            recorder.__exit__(type(exception), exception, None)

    def _close(self) -> None:
        recorder, self.recorder, self._losses = self.recorder, None, []
        if recorder is not None:
            recorder.close()


def only_optimizer(optimizers: Sequence[Any]) -> Optimizer:
    """The one optimizer of a module, without Lightning's wrapper.

    Raises:
        CheckpointError: There are several, or none.
    """
    if len(optimizers) != 1:
        raise CheckpointError(
            f"The Recorder follows one optimizer, but configure_optimizers gave {len(optimizers)}. "
            "Train with one, with several parameter groups; or open one tracin.Recorder for each "
            "part of the model and its optimizer, in the module's own on_train_start."
        )
    # Lightning's wrapper has the one that steps as `optimizer`.
    bare: Optimizer = getattr(optimizers[0], "optimizer", optimizers[0])
    return bare


def refuse_spread(model: Module) -> None:
    """Only a process that holds all weights can record them."""
    for name, parameter in model.named_parameters():
        if type(parameter.data) is not Tensor:
            raise UnsupportedModelError(
                f"{name} is a {type(parameter.data).__name__}, spread over processes, so the first "
                "one cannot record it. Train with another strategy, such as 'ddp'."
            )


def from_ckpt(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]],
    learning_rates: Sequence[Rate] | None = None,
    prefix: str = "",
    module: Module | None = None,
) -> list[Checkpoint]:
    """The checkpoints in `.ckpt` files, as Lightning's ModelCheckpoint writes them.

    Args:
        paths: One file, a list of files, whose order is kept, or a folder, whose files come in the
            order of their steps; there, a `last.ckpt` of a step that another file has is left out.
        learning_rates: The rate of each checkpoint. None: as its optimizer's state has it, which
            is the true one only without a scheduler.
        prefix: The attribute by which the module holds the model that is asked about, such as
            "model.": other names are left out, and it is taken off. By default the model is the
            LightningModule, whose names fit as they are.
        module: The LightningModule that was trained, if Adam's moments in the files are asked for,
            by `tracin.Adam`. They are numbered as its optimizer numbers parameters: unless that was
            made of named parameters, `module.configure_optimizers()` makes it again. The module
            comes back as it was.

    Returns:
        The checkpoints. Nothing pickled is ever run.

    Raises:
        CheckpointError: A file is missing, unreadable or not Lightning's, is a folder over which
            DeepSpeed or FSDP spread its state, or has nothing under the prefix.
        LearningRateError: No rate was given, and a file cannot tell it.

    Warns:
        CheckpointWarning: It cannot be known which parameters the moments of a file belong to.

    Example:
        >>> from_ckpt("nowhere.ckpt")
        Traceback (most recent call last):
        tracin.errors.CheckpointError: nowhere.ckpt does not exist.
    """
    is_one = isinstance(paths, str | PathLike)
    given = [Path(path).expanduser() for path in ([paths] if is_one else paths)]
    is_folder = is_one and given[0].is_dir() and not spread_by(given[0])
    found = [
        prefixed_checkpoint(path, prefix, module)
        for path in (files_in(given[0]) if is_folder else given)
    ]
    if is_folder:
        found = without_last(sorted(found, key=lambda one: one.step or 0))
    if learning_rates is None:
        refuse_unknown_rates(found)
        return found
    if len(learning_rates) != len(found):
        raise LearningRateError(
            f"learning_rates needs one for each of the {len(found)} checkpoints "
            f"({', '.join(one.name for one in found)}); {len(learning_rates)} were given."
        )
    return [
        replace(one, learning_rate=rate) for one, rate in zip(found, learning_rates, strict=True)
    ]


def files_in(folder: Path) -> list[Path]:
    """The `.ckpt` files of a folder."""
    files = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    if not files:
        raise CheckpointError(
            f"{folder} holds no {SUFFIX} file. ModelCheckpoint writes them to its dirpath, by "
            "default lightning_logs/version_<n>/checkpoints."
        )
    return files


def prefixed_checkpoint(path: Path, prefix: str, module: Module | None) -> Checkpoint:
    """One file, with the rate that can be believed, and its moments where the module is given."""
    if way := spread_by(path):
        raise CheckpointError(
            f"{path} is a folder over which {way} spread weights and moments by process, which "
            f"cannot be read in parts. {CONSOLIDATE[way]}"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    content = read_torch(path)
    if not is_lightning(content):
        raise CheckpointError(
            f"{path} is not a checkpoint of Lightning. Other files are opened by "
            "tracin.open_checkpoints(path)."
        )
    weights = weights_within(content, str(path))
    found = lightning_rate(content)
    source: Path | dict[str, Tensor] = path
    if prefix:
        source = {
            name.removeprefix(prefix): values
            for name, values in weights.items()
            if name.startswith(prefix)
        }
        if not source:
            raise CheckpointError(
                f"{path} has no name that begins with {prefix!r}: its names are "
                f"{', '.join(map(repr, list(weights)[:4]))}, ..."
            )
    names = () if module is None else _moment_names(path, content, module, prefix)
    return Checkpoint(
        source,
        found.learning_rate,
        name=path.name,
        step=found.step,
        no_rate=found.no_rate,
        optimizer_kind=found.optimizer_kind,
        optimizer_path=path if names else None,
        optimizer_names=names,
    )


def _moment_names(path: Path, content: Any, module: Module, prefix: str) -> Groups:
    """The parameters that Adam's moments in a file are of, as the model names them; or none."""
    state = lightning_optimizer(content)
    if not adam_kind([state]):
        return ()
    groups = module_groups(module, state)
    if groups is None:
        warnings.warn(
            f"{path} has Adam's moments, but not of which parameters: they fit neither the names "
            "in the file nor the optimizer that module.configure_optimizers() makes, or it cannot "
            "make one here. They are left out. Give the module as it was trained, or record with "
            "tracin.integrations.lightning.TracInCallback.",
            CheckpointWarning,
            stacklevel=4,
        )
        return ()
    # What is outside of the prefix must not take the name of what is within.
    return tuple(
        tuple(
            name.removeprefix(prefix) if name.startswith(prefix) else f"{OUTSIDE}{name}"
            for name in group
        )
        for group in groups
    )


def without_last(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Leave out a `last.ckpt` that is a copy of another."""
    others = {one.step for one in checkpoints if not is_last(one)}
    return [one for one in checkpoints if not is_last(one) or one.step not in others]


def is_last(checkpoint: Checkpoint) -> bool:
    """Whether Lightning calls it the last one: `last.ckpt`, `last-v1.ckpt`."""
    return checkpoint.name.split(".")[0].split("-")[0] == "last"


def refuse_unknown_rates(checkpoints: Sequence[Checkpoint]) -> None:
    """Ask for the rates that the files do not tell."""
    lacking = [one for one in checkpoints if one.learning_rate is None]
    if lacking:
        named = "; ".join(f"{one.name} ({one.no_rate})" for one in lacking[:4])
        more = f"; and {len(lacking) - 4} more" if len(lacking) > 4 else ""
        raise LearningRateError(
            f"The learning rate of {len(lacking)} of {len(checkpoints)} checkpoints is not known: "
            f"{named}{more}. Give those really used in each one's step, "
            "from_ckpt(..., learning_rates=[...]), as LearningRateMonitor logged them; or weigh "
            'all equally by tracin.TracIn(..., learning_rates="equal") with the files themselves.'
        )
