"""What a Recorder saves with a checkpoint's weights: optimizer moments and averaged weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.applied_adapters import scales_metadata
from tracin.checkpoints.frozen_part import without_frozen
from tracin.checkpoints.frozen_weights import FrozenWeights, parameters_by_bare_name
from tracin.checkpoints.optimizer_state import OptimizerState
from tracin.checkpoints.readers.safetensors import write_safetensors
from tracin.checkpoints.record import AVERAGED, OPTIMIZER
from tracin.checkpoints.state_dict import without_extra_state, without_wrappers
from tracin.errors import CheckpointError
from tracin.plain_text import a_kind, listed

COUNTER = "n_averaged"  # how many models torch's AveragedModel has averaged: no weight


class Companions:
    """Writes the files of one name that belong to a checkpoint, and deletes them with it."""

    def __init__(
        self, folder: Path, model: Module, optimizer: Optimizer | None, averaged: Module | None
    ) -> None:
        self._folder, self._model = folder, model
        self._optimizer, self._averaged = optimizer, averaged
        if optimizer is not None:
            OptimizerState.of(model, optimizer)
        if averaged is not None:
            refuse_other_averages(model, averaged)

    def write(self, name: str, left_out: FrozenWeights) -> tuple[str, str]:
        """Write what belongs to the checkpoint of this name, and leave nothing older there.

        Args:
            name: The name of the checkpoint's file.
            left_out: What that file leaves out, and averages with it, where they are equal.

        Returns the checksums of the two files; "" for one that is not written.
        """
        optimizer = averaged = ""
        if self._optimizer is None:
            (self._folder / OPTIMIZER / name).unlink(missing_ok=True)
        else:
            state = OptimizerState.of(self._model, self._optimizer)
            optimizer = state.write(self._made(OPTIMIZER) / name)
        if self._averaged is None:
            (self._folder / AVERAGED / name).unlink(missing_ok=True)
        else:
            averaged = self._write_averages(self._averaged, name, left_out)
        return optimizer, averaged

    def _write_averages(self, averaged: Module, name: str, left_out: FrozenWeights) -> str:
        """Averages of frozen weights are the weights themselves, up to rounding."""
        ours, theirs = parameters_by_bare_name(self._model), averages(averaged)
        rounded = [
            key
            for key in left_out.by_name
            if key in theirs and not torch.equal(ours[key].detach(), theirs[key].to(ours[key]))
        ]
        alike = left_out.without(rounded)
        kept = without_frozen(self._model, theirs, alike)
        return write_safetensors(
            {key: theirs[key] for key in kept},
            self._made(AVERAGED) / name,
            alike.metadata() | scales_metadata(averaged),
        )

    def delete(self, name: str) -> None:
        """Delete a checkpoint's weights, and all that belongs to them."""
        for path in (self._folder, self._folder / OPTIMIZER, self._folder / AVERAGED):
            (path / name).unlink(missing_ok=True)

    def _made(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return folder


def averages(averaged: Module) -> dict[str, Tensor]:
    """The averaged weights, by the names that the trained model's have without its wrappers."""
    return without_wrappers(
        {name: value for name, value in tensors(averaged).items() if name != COUNTER}
    )


def tensors(model: Module, left_out: FrozenWeights | None = None) -> dict[str, Tensor]:
    """A model's state dict, without frozen weights and modules' extra state (`get_extra_state`)."""
    state: Mapping[str, Any] = without_extra_state(model.state_dict())
    if left_out is not None:
        state = without_frozen(model, state, left_out)
    others = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"Only tensors can be saved, but the model's state dict holds {listed(others)}. "
            "Keep such state outside of the model."
        )
    return dict(state)


def refuse_other_averages(model: Module, averaged: Module) -> None:
    """Averaged weights must fit the model that is trained."""
    if not isinstance(averaged, Module):
        raise CheckpointError(
            "averaged must be a torch.nn.Module with averaged weights, such as torch.optim."
            f"swa_utils.AveragedModel(model); {a_kind(averaged)} was given."
        )
    ours, theirs = without_wrappers(tensors(model)), averages(averaged)
    differing = [
        name
        for name in dict.fromkeys([*ours, *theirs])
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
    ]
    if differing:
        raise CheckpointError(
            "averaged must hold the averaged weights of the model that is trained, but "
            f"{listed(differing)} differ in name or shape. Make it from this model: "
            "torch.optim.swa_utils.AveragedModel(model)."
        )
