"""Hugging Face's Trainer: a callback that records, its data, and the checkpoints of past runs."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

from torch.nn import Module
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle

from tracin.checkpoints import Checkpoint, Recorder, loaded, open_checkpoints
from tracin.checkpoints.readers.hugging_face import step_of
from tracin.checkpoints.readers.trainer_optimizer import OPTIMIZER_FILE, trainer_optimizer
from tracin.checkpoints.token_count import TokenCount
from tracin.errors import CheckpointError, CheckpointWarning, UnsupportedModelError
from tracin.extras import install_line
from tracin.integrations.recording import RecorderSettings
from tracin.wrappers import unwrapped

try:
    from accelerate.utils import extract_model_from_parallel, is_compiled_module
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    from tracin.integrations.trainer_groups import trainer_groups
    from tracin.integrations.trainer_tokens import TrainerTokens
except ImportError as error:
    raise ImportError(
        "tracin.integrations.transformers needs transformers with accelerate, which are not "
        f"installed: {install_line('transformers')}."
    ) from error


class TracInCallback(TrainerCallback):
    """Records checkpoints while Hugging Face's Trainer trains.

    Each checkpoint comes with the learning rate really used in its step, warm-up and decay
    included; with gradient accumulation a step is one of the optimizer's. Open the folder by
    `tracin.open_checkpoints(folder)`, or give it to `tracin.TracIn`. Of several processes the
    first one records. How the Trainer weighed tokens is recorded, too, for the loss "causal_lm",
    unless the model is compiled; where it cannot be seen, a warning says so. Of a PEFT model the
    adapter alone is saved: what takes no steps is left out.

    With `trainer.train(resume_from_checkpoint=...)` recording resumes as well. The Trainer's
    checkpoint is mostly an earlier one than the Recorder's last: what was recorded after it is
    then deleted, since training repeats those steps. For this both must have saved at the step
    that is resumed from: give `every=n` with `save_steps=n`, or save both at epochs' ends.

    Attributes:
        recorder: The Recorder at work; None when nothing is trained.

    Args:
        folder: Where to write; not the Trainer's own output folder.
        every: "epoch" to save at each epoch's end, or a number n to save after each n-th step.
        every_n_epochs: With `every="epoch"`, save at each n-th epoch only.
        keep: How many checkpoints to keep: those with the largest reductions of the training
            loss. The loss is the mean of those that the Trainer logs during an epoch, so
            `logging_steps` must be shorter than one.
        optimizer_state: Whether the optimizer's moments are written with each checkpoint; by
            default those of Adam and AdamW, for `tracin.Adam`.
        averaged: A model with averaged weights, to be saved at the same moments.
        frozen_weights: Also write the weights that take no steps, with every checkpoint.

    Raises:
        CheckpointError: An option cannot be; when training begins, also where the folder has
            checkpoints of another model or cannot be resumed.
        UnsupportedModelError: When training begins, with DeepSpeed or FSDP, whose weights are
            spread over processes.
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
        self._logged: list[float] = []
        self._hook: RemovableHandle | None = None
        self._tokens: TrainerTokens | None = None
        self.recorder: Recorder | None = None

    def __repr__(self) -> str:
        return f"TracInCallback({self._recording})"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the Recorder on the bare model and the bare optimizer."""
        # The Trainer has no event for an exception: the last training may have left it open.
        self._close()
        if not state.is_world_process_zero:
            return
        self._refuse_spread(args)
        optimizer = kwargs["optimizer"]
        # accelerate's optimizer is called for every micro-batch; the one within, for steps.
        bare = getattr(optimizer, "optimizer", optimizer)
        model = extract_model_from_parallel(kwargs["model"], keep_torch_compile=False)
        scaler = getattr(optimizer, "scaler", None)
        self.recorder = self._recording.begin(model, bare, state.global_step, scaler)
        # A hook would make torch.compile compile again.
        if not is_compiled_module(kwargs["model"]) and not args.torch_compile:
            self.recorder.token_count = TokenCount()
            self._tokens = TrainerTokens(self.recorder.token_count, model, args)
            self._hook = model.register_forward_pre_hook(self._tokens.see, with_kwargs=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add up the step's tokens."""
        if self._tokens is not None:
            self._tokens.step()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take down the training loss."""
        loss = (kwargs.get("logs") or {}).get("loss")
        if loss is not None:
            self._logged.append(float(loss))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say so to the Recorder."""
        logged, self._logged = self._logged, []
        if self.recorder is None:
            return
        if self._recording.keep is not None and not logged:
            raise CheckpointError(
                f"keep={self._recording.keep} needs the training loss of each epoch, but the "
                'Trainer logged none during this one: logging_strategy="steps" with logging_steps '
                "shorter than an epoch, or leave keep out."
            )
        self.recorder.epoch(sum(logged) / len(logged) if logged else None)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write down the last steps."""
        self._close()

    def _close(self) -> None:
        recorder, self.recorder, self._logged = self.recorder, None, []
        hook, self._hook, self._tokens = self._hook, None, None
        if hook is not None:
            hook.remove()
        if recorder is not None:
            recorder.close()

    def _refuse_spread(self, args: TrainingArguments) -> None:
        way = next((way for way in ("deepspeed", "fsdp") if getattr(args, way, None)), None)
        if way is not None:
            raise UnsupportedModelError(
                f"With {way} the weights are spread over processes, so the first one cannot "
                "record them. Train without it, or give the Trainer's own checkpoints, saved "
                "whole: tracin.integrations.transformers.from_run(output_dir)."
            )


def from_run(folder: str | Path, model: Module | None = None) -> list[Checkpoint]:
    """The checkpoints that Hugging Face's Trainer left in its output folder.

    Learning rates are those that the Trainer logged in `trainer_state.json`, never those in
    `optimizer.pt`, which are of the step to come. With several parameter groups the Trainer logs
    that of the first. Releases before 4.51 logged the rate of the next step; `config.json` names
    the release, and the rates are put right. PEFT's adapters have no such file: an adapter
    trained with an older release gets the next step's rate. Where the Trainer logged none in a
    checkpoint's own step (`logging_steps` above 1), the last one before counts, and `tracin.TracIn`
    warns.

    Adam's moments, for `tracin.Adam`, are read from `optimizer.pt`, which numbers parameters where
    the model names them: give the model, with the same parameters frozen as in training.

    Args:
        folder: The Trainer's `output_dir`, with its `checkpoint-*` folders.
        model: If given, each checkpoint is loaded into it once, so that one that does not fit is
            found now, and gets its moments. It comes back as it was.

    Returns:
        The checkpoints in the order of their steps.

    Raises:
        CheckpointError: There is none, or one cannot be read or does not fit the model.

    Warns:
        CheckpointWarning: The moments of a checkpoint are over other parameters than those that
            the model trains.
    """
    folder = Path(folder).expanduser()
    inner = sorted(folder.iterdir()) if folder.is_dir() else []
    steps = {path: step for path in inner if (step := step_of(path)) is not None}
    if not steps:
        raise CheckpointError(
            f"{folder} must be a Trainer's output folder, with folders named checkpoint-<step>, "
            'but it has none. The Trainer writes them with save_strategy="steps" or "epoch".'
        )
    checkpoints = open_checkpoints(sorted(steps, key=lambda path: steps[path]))
    if model is None:
        return checkpoints
    for checkpoint in checkpoints:
        with loaded(model, checkpoint):
            pass
    return [_with_moments(checkpoint, unwrapped(model)) for checkpoint in checkpoints]


def _with_moments(checkpoint: Checkpoint, model: Module) -> Checkpoint:
    """The checkpoint with the moments in its folder, if they are Adam's."""
    folder = checkpoint.source
    if not isinstance(folder, Path) or not checkpoint.optimizer_kind:
        return checkpoint
    content = trainer_optimizer(folder)
    names = None if content is None else trainer_groups(model, content)
    if names is None:
        warnings.warn(
            f"{folder / OPTIMIZER_FILE} has the moments of other parameters than those that "
            "require a gradient in the model, so they are left out. Give the model as it was "
            "trained, with the same parameters frozen.",
            CheckpointWarning,
            stacklevel=3,
        )
        return checkpoint
    path = folder / OPTIMIZER_FILE
    return replace(checkpoint, optimizer_path=path, optimizer_names=names)


def trainer_data(
    dataset: Any, collator: Callable[[list[Any]], Any], model: Module
) -> DataLoader[Any]:
    """The examples of a Trainer's dataset, collated as the Trainer collates them.

    As with `remove_unused_columns=True`, its default, the collator gets the columns that the
    model's forward takes and those of labels; results still show examples with all columns.

    Args:
        dataset: A `datasets.Dataset`, or another map-style dataset of mappings.
        collator: Such as `DataCollatorForLanguageModeling(tokenizer, mlm=False)` or
            `DataCollatorForSeq2Seq(tokenizer)`. One that draws random numbers is refused later,
            since an example would have another gradient each time.
        model: The model that was trained; one of PEFT counts as the model within.

    Returns:
        What `tracin.TracIn` takes as train or queries.

    Example:
        >>> import torch
        >>> from transformers import DefaultDataCollator
        >>> class Tiny(torch.nn.Module):
        ...     def forward(self, input_ids):
        ...         return input_ids
        >>> data = [{"input_ids": [1, 2], "text": "so so", "labels": 1}]
        >>> sorted(next(iter(trainer_data(data, DefaultDataCollator(), Tiny()))))
        ['input_ids', 'labels']
    """
    within = getattr(model, "get_base_model", None)
    bare: Any = within() if callable(within) else model
    taken = inspect.signature(bare.forward).parameters
    labels = ("label", "label_ids", "labels")
    return DataLoader(
        dataset,
        batch_size=8,
        collate_fn=TakenColumns(collator, frozenset(taken) | frozenset(labels)),
    )


@final
@dataclass(frozen=True)
class TakenColumns:
    """A collator that sees some columns only.

    Attributes:
        collator: Makes a batch of examples.
        names: The columns that it gets.
    """

    collator: Callable[[list[Any]], Any]
    names: frozenset[str]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Any:
        """The batch of some examples, without the columns that are not taken."""
        return self.collator(
            [{key: each[key] for key in each if key in self.names} for each in examples]
        )
