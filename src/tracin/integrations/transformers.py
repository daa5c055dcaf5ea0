"""Hugging Face's Trainer: a callback that records, its data, and the checkpoints of past runs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from torch.nn import Module
from torch.utils.data import DataLoader

from tracin.checkpoints import Checkpoint, Recorder, loaded, open_checkpoints
from tracin.checkpoints.readers.hugging_face import step_of
from tracin.errors import CheckpointError, UnsupportedModelError
from tracin.integrations.recording import RecorderSettings

try:
    from accelerate.utils import extract_model_from_parallel
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "tracin.integrations.transformers needs transformers with accelerate, which are not "
        "installed: pip install 'tracin[transformers]'."
    ) from error


class TracInCallback(TrainerCallback):
    """Records checkpoints while Hugging Face's Trainer trains.

    Each checkpoint comes with the learning rate really used in its step, warm-up and decay
    included; with gradient accumulation a step is one of the optimizer's. Open the folder by
    `tracin.open_checkpoints(folder)`, or give it to `tracin.TracIn`. Of several processes the
    first one records. A PEFT model is saved whole, base model included.

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
        optimizer_state: Also write the optimizer's moments with each checkpoint.
        averaged: A model with averaged weights, to be saved at the same moments.

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
        optimizer_state: bool = False,
        averaged: Module | None = None,
    ) -> None:
        self._recording = RecorderSettings(
            Path(folder).expanduser(), every, every_n_epochs, keep, optimizer_state, averaged
        )
        self._logged: list[float] = []
        self.recorder: Recorder | None = None

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

    Args:
        folder: The Trainer's `output_dir`, with its `checkpoint-*` folders.
        model: If given, each checkpoint is loaded into it once, so that one that does not fit is
            found now. It comes back as it was.

    Returns:
        The checkpoints in the order of their steps.

    Raises:
        CheckpointError: There is none, or one cannot be read or does not fit the model.
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
    if model is not None:
        for checkpoint in checkpoints:
            with loaded(model, checkpoint):
                pass
    return checkpoints


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
        >>> next(iter(trainer_data(data, DefaultDataCollator(), Tiny())))
        {'labels': tensor([1]), 'input_ids': tensor([[1, 2]])}
    """
    within = getattr(model, "get_base_model", None)
    bare = within() if callable(within) else model
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
