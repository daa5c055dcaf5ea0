"""One checkpoint: where its weights are, and the learning rate that weighs its scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from torch import Tensor

from tracin.checkpoints.frozen_weights import FrozenWeights
from tracin.checkpoints.optimizer_state import OptimizerState
from tracin.checkpoints.rate import Rate, valid_rate
from tracin.checkpoints.readers.formats import SAFETENSORS, files_of, read_weights, suffix_of
from tracin.checkpoints.readers.lightning import is_lightning, lightning_optimizer
from tracin.checkpoints.readers.safetensors import read_safetensors, refuse_other_file
from tracin.checkpoints.readers.torch import read_torch
from tracin.checkpoints.state_dict import (
    refuse_other_kinds,
    weights_within,
    without_wrappers,
)
from tracin.checkpoints.step_log import StepLog
from tracin.errors import CheckpointError
from tracin.files import Stamp, stamp_of


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of a model at one moment of its training, with the learning rate used there.

    Attributes:
        source: A file (`.safetensors`; `.pt`, `.pth`, `.bin`, `.ckpt`), a checkpoint folder of
            Hugging Face, or a state dict.
        learning_rate: The rate of the steps before it, the same for all parameters or a mapping
            from parameter name to rate where the optimizer has several groups. Before the first
            step, the rate of that one. None: unknown.
        name: What messages and results call it; by default the file's name.
        step: How many optimizer steps came before it, if known.
        log: The rates of all steps of its training run, if a `tracin.Recorder` kept them.
        no_rate: Why no learning rate is known, for the message that asks for one.
        loss: The training loss at that moment, if a `tracin.Recorder` was given it.
        optimizer_path: Where the optimizer's moments are, if they were kept: a file that
            `tracin.OptimizerState` wrote, or a Trainer's `optimizer.pt`.
        optimizer_kind: The name of the optimizer's class, such as "AdamW"; "" if it is unknown.
        optimizer_names: Of an `optimizer.pt` or `.ckpt`, the names of the parameters in each group,
            in order.
        trained: The parameters that were trained up to then; empty unless a `tracin.Recorder`
            wrote it.
        checksum: The checksum of the weights' file in its Recorder's list; "" if it is unknown.
        optimizer_checksum: The checksum of the optimizer's file.
        tokens_per_example: The mean number of predicted tokens per training example, if the trainer
            divided the loss of a batch by all of its tokens and a callback recorded it.
        thawed: Files, with checksums, of weights that its own file leaves out and that were
            trained later, if a `tracin.Recorder` wrote any.
        stamp: The sizes and times of its files when it was opened; None to read whatever is there.

    Raises:
        LearningRateError: The learning rate is zero, negative, NaN, infinite, or no number.
        CheckpointError: The source is neither a path nor a state dict.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(2, 1)
        >>> tracin.Checkpoint(model.state_dict(), learning_rate=0.1, name="epoch 3")
        Checkpoint(learning_rate=0.1, name='epoch 3', step=None)
    """

    source: Path | Mapping[str, Tensor] = field(repr=False)
    learning_rate: Rate | None = None
    name: str = field(default="", kw_only=True)
    step: int | None = field(default=None, kw_only=True)
    log: StepLog | None = field(default=None, kw_only=True, repr=False)
    no_rate: str = field(default="none was given", kw_only=True, repr=False)
    loss: float | None = field(default=None, kw_only=True, repr=False)
    optimizer_path: Path | None = field(default=None, kw_only=True, repr=False)
    optimizer_kind: str = field(default="", kw_only=True, repr=False)
    optimizer_names: tuple[tuple[str, ...], ...] = field(default=(), kw_only=True, repr=False)
    trained: tuple[str, ...] = field(default=(), kw_only=True, repr=False)
    checksum: str = field(default="", kw_only=True, repr=False)
    optimizer_checksum: str = field(default="", kw_only=True, repr=False)
    tokens_per_example: float | None = field(default=None, kw_only=True, repr=False)
    thawed: tuple[tuple[Path, str], ...] = field(default=(), kw_only=True, repr=False)
    stamp: Stamp | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.source, str | PathLike):
            object.__setattr__(self, "source", Path(self.source).expanduser())
        elif not isinstance(self.source, Mapping):
            raise CheckpointError(
                "A checkpoint is a path or a state dict (parameter name -> tensor), not a "
                f"{type(self.source).__name__}. For a model, pass model.state_dict()."
            )
        if isinstance(self.optimizer_path, str | PathLike):
            object.__setattr__(self, "optimizer_path", Path(self.optimizer_path).expanduser())
        if not self.name:
            name = self.source.name if isinstance(self.source, Path) else "a state dict"
            object.__setattr__(self, "name", name)
        if self.learning_rate is not None:
            rate = valid_rate(self.learning_rate, self.name)
            object.__setattr__(self, "learning_rate", rate)

    def weights(self) -> dict[str, Tensor]:
        """Read the weights: parameter or buffer name -> tensor, on the CPU if from a file.

        Names come without the prefixes of wrappers (`module.`, `_orig_mod.`). A `tracin.Recorder`
        leaves frozen weights out (`left_out`).

        Raises:
            CheckpointError: The file is missing, truncated, damaged or not the one that its record
                lists, holds code, holds no state dict, or was rewritten since it was opened.
        """
        if not isinstance(self.source, Path):
            weights = weights_within(self.source, self.name)
            refuse_other_kinds(weights, self.name)
            return weights
        before = self._unchanged(self.source, self.stamp)
        if self.checksum:
            refuse_other_file(self.source, self.checksum)
        weights = read_weights(self.source)
        self._unchanged(self.source, before)
        # The first of them was written first, when its weights had the numbers of this checkpoint.
        for path, checksum in reversed(self.thawed):
            refuse_other_file(path, checksum)
            weights = without_wrappers(read_safetensors(path)) | weights
        return weights

    def left_out(self) -> FrozenWeights:
        """What was frozen when a `tracin.Recorder` wrote this, and is not in `weights`.

        Raises:
            CheckpointError: The file is missing or damaged.
        """
        if not isinstance(self.source, Path) or suffix_of(self.source) != SAFETENSORS:
            return FrozenWeights({})
        found = FrozenWeights.read(self.source)
        thawed = [name for path, _ in self.thawed for name in read_safetensors(path)]
        return found.without(thawed)

    def _unchanged(self, path: Path, expected: Stamp | None) -> Stamp | None:
        """The stamp of the files now, which must be the expected one."""
        if not path.exists():
            return None  # the reader raises the error
        now = stamp_of(files_of(path))
        if expected is not None and now != expected:
            raise CheckpointError(
                f"{path} was rewritten after it was opened, so it may hold other weights now. "
                "Copy checkpoints that a training overwrites, and open them again."
            )
        return now

    def optimizer_state(self) -> OptimizerState | None:
        """Read what the optimizer remembered then; None where it was not written.

        Raises:
            CheckpointError: The file is missing, truncated, damaged or of another kind.
        """
        if self.optimizer_path is None:
            return None
        if self.optimizer_names:
            content = read_torch(self.optimizer_path)
            content = lightning_optimizer(content) if is_lightning(content) else content
            return OptimizerState.of_state_dict(content, self.optimizer_names, self.optimizer_path)
        return OptimizerState.read(self.optimizer_path, self.optimizer_checksum)
