"""Refuse to record what would be untrue: another optimizer, another model, other weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.checkpoint import Checkpoint
from tracin.checkpoints.names import without_wrappers
from tracin.checkpoints.safetensors_files import read_shapes
from tracin.checkpoints.state_dicts import listed, without_extra_state
from tracin.errors import CheckpointError


def refuse_other_optimizer(model: Module, optimizer: Optimizer) -> None:
    """Every trainable parameter must be in the optimizer: else its rate would be made up."""
    held = {id(one) for group in optimizer.param_groups for one in group["params"]}
    trainable = {name: id(one) for name, one in model.named_parameters() if one.requires_grad}
    missing = [name for name, key in trainable.items() if key not in held]
    if missing:
        raise CheckpointError(
            "The optimizer must hold every trainable parameter of the model; "
            f"{len(missing)} of {len(trainable)} are not in it: {listed(missing)}. Make the "
            "optimizer from this model's parameters, after the model is moved and wrapped, "
            "and freeze what is not trained: parameter.requires_grad_(False)."
        )


def refuse_other_model(model: Module, path: Path) -> None:
    """The folder's checkpoints, such as `path`, must be of a model like this one."""
    theirs = without_wrappers(read_shapes(path))
    ours = without_wrappers(
        {
            name: tuple(value.shape)
            for name, value in without_extra_state(model.state_dict()).items()
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
            f"{path.parent} has checkpoints of another model: {'; '.join(differing[:3])}"
            f"{more}. Give a new folder."
        )


def refuse_other_weights(model: Module, latest: Checkpoint | None, folder: Path) -> None:
    """A log is true only if training goes on from the weights that it ends with."""
    if latest is None:
        return
    saved = latest.weights()
    ours: Mapping[str, Tensor] = without_wrappers(
        dict(model.named_parameters(remove_duplicate=False))
    )
    # Buffers are left out: a forward pass before the first step may have changed them.
    differing = [
        name
        for name, parameter in ours.items()
        if name in saved and not torch.equal(saved[name], parameter.detach().cpu())
    ]
    if differing:
        raise CheckpointError(
            f"{folder} has checkpoints up to step {latest.step}, but the model does not "
            f"hold the last one's weights: {listed(differing)} differ. To go on, load "
            "recorder.latest().weights() into the model before the first step; to start "
            "afresh, give a new folder."
        )


def refuse_other_moments(every: Any, epochs_between: Any, keep: Any) -> None:
    """What says when to save, and what to keep, must be possible together."""
    if every != "epoch" and not is_count(every):
        raise CheckpointError(
            f'every must be "epoch" or a positive number of steps; {every!r} was given.'
        )
    if not is_count(epochs_between):
        raise CheckpointError(
            f"epochs_between must be a positive number of epochs; {epochs_between!r} was given."
        )
    if epochs_between != 1 and every != "epoch":
        raise CheckpointError(
            f"epochs_between={epochs_between} counts epochs, and every={every} steps: give "
            'every="epoch", or leave epochs_between out.'
        )
    if keep is None:
        return
    if not is_count(keep):
        raise CheckpointError(
            f"keep must be a positive number of checkpoints, or None to keep all; {keep!r} was "
            "given."
        )
    if every != "epoch":
        raise CheckpointError(
            f"keep={keep} needs the loss of each checkpoint, and every={every} saves where none "
            'can be given: use every="epoch" with recorder.epoch(loss=...), or call '
            "recorder.save(loss=...) yourself where you want checkpoints."
        )


def is_count(value: Any) -> bool:
    """Whether this is a whole number of at least one."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def said(shape: tuple[int, ...] | None) -> str:
    """A shape in words."""
    return "missing" if shape is None else str(list(shape))
