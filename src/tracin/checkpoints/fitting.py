"""Refuse what would make a record untrue: another optimizer, model, weights or parameters."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.applied_adapters import refuse_other_scales
from tracin.checkpoints.checkpoint import Checkpoint
from tracin.checkpoints.frozen_part import without_frozen
from tracin.checkpoints.frozen_weights import FrozenWeights
from tracin.checkpoints.readers.safetensors import read_shapes
from tracin.checkpoints.state_dict import bare_name, without_extra_state, without_wrappers
from tracin.errors import CheckpointError, TracInError
from tracin.plain_text import first_few, listed

# Wrappers whose step is the step of their `optimizer`, and nothing more.
_TRANSPARENT = ("AcceleratedOptimizer", "LightningOptimizer")


def bare_optimizer(optimizer: Any, listener: str, error: type[TracInError]) -> Optimizer:
    """The optimizer itself, or the one that Accelerate or Lightning wraps."""
    kind = type(optimizer).__name__
    if any(one.__name__ in _TRANSPARENT for one in type(optimizer).__mro__):
        return bare_optimizer(getattr(optimizer, "optimizer", None), listener, error)
    if not isinstance(optimizer, Optimizer):
        raise error(
            f"The {listener} listens to a torch.optim.Optimizer; a {kind} was given. If it is a "
            "wrapper, pass the optimizer it wraps."
        )
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise error(
            f"The {listener} cannot listen to this {kind}: it is a torch.optim.Optimizer whose "
            "__init__ did not call torch.optim.Optimizer.__init__, so it has no hooks. Pass the "
            "optimizer that it wraps, or call super().__init__ there."
        )
    return optimizer


def refuse_other_optimizer(model: Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that lacks a trainable parameter, whose rate would be unknown."""
    optimized = {id(one) for group in optimizer.param_groups for one in group["params"]}
    trainable = {name: id(one) for name, one in model.named_parameters() if one.requires_grad}
    missing = [name for name, key in trainable.items() if key not in optimized]
    if missing:
        raise CheckpointError(
            "The optimizer must hold every trainable parameter of the model; "
            f"{len(missing)} of {len(trainable)} are not in it: {listed(missing)}. Make the "
            "optimizer from this model's parameters, after the model is moved and wrapped, "
            "and freeze what is not trained: parameter.requires_grad_(False)."
        )


def refuse_other_model(model: Module, path: Path) -> None:
    """Refuse a folder whose checkpoints, such as `path`, are of another model."""
    left_out = FrozenWeights.read(path)
    theirs = without_wrappers(read_shapes(path))
    theirs |= {name: one.shape for name, one in left_out.by_name.items()}
    ours = without_wrappers(
        {
            name: tuple(value.shape)
            for name, value in whole_state(model, left_out).items()
            if isinstance(value, Tensor)
        }
    )
    differing = [
        f"{name} is {shape_text(theirs.get(name))} there and {shape_text(ours.get(name))} here"
        for name in dict.fromkeys([*ours, *theirs])
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"{path.parent} has checkpoints of another model: {first_few(differing)}. Give a new "
            "folder."
        )
    refuse_other_scales(model, path, str(path.parent))


def refuse_other_weights(model: Module, latest: Checkpoint | None, folder: Path) -> None:
    """Refuse a model without the last checkpoint's weights: the log is of another training."""
    if latest is None:
        return
    saved, frozen = latest.weights(), latest.left_out().by_name
    ours: Mapping[str, Tensor] = without_wrappers(
        dict(model.named_parameters(remove_duplicate=False))
    )
    # Buffers are left out: a forward pass before the first step may have changed them.
    differing = [
        name
        for name, parameter in ours.items()
        if (name in saved and not torch.equal(saved[name], parameter.detach().cpu()))
        or (name in frozen and not frozen[name].is_same(parameter))
    ]
    if differing:
        raise CheckpointError(
            f"{folder} has checkpoints up to step {latest.step}, but the model does not "
            f"hold the last one's weights: {listed(differing)} differ. To resume, load "
            "recorder.latest().weights() into the model before the first step (and give it the "
            "base that was frozen then); to start afresh, give a new folder."
        )


def whole_state(model: Module, left_out: FrozenWeights) -> dict[str, Any]:
    """A model's state dict with its frozen weights, and without what quantised ones add to it."""
    state = without_extra_state(model.state_dict())
    frozen = {name for name in state if bare_name(name) in left_out.by_name}
    kept = without_frozen(model, state, left_out)
    return {name: value for name, value in state.items() if name in kept or name in frozen}


def shape_text(shape: tuple[int, ...] | None) -> str:
    """A shape in words."""
    return "missing" if shape is None else str(list(shape))


def refuse_other_traced(
    model: Module, checkpoints: Sequence[Checkpoint], traced: Collection[str], is_choice: bool
) -> None:
    """Refuse to trace other parameters than those a `tracin.Recorder` saw trained."""
    ours = {bare_name(name) for name in traced}
    known = {bare_name(name) for name, _ in model.named_parameters()}
    for checkpoint in checkpoints:
        trained = set(checkpoint.trained)
        if not trained & known:
            continue  # no list, or another model, of which loading has the words
        if never := sorted(ours - trained):
            raise CheckpointError(
                f"{checkpoint.name} was recorded while {listed(never)} took no steps: frozen, or "
                "not in the optimizer. Gradients of what was not trained explain nothing: freeze "
                "it in the model, parameter.requires_grad_(False), or name by `parameters` what "
                "was trained."
            )
        if frozen := [] if is_choice else sorted(known & trained - ours):
            raise CheckpointError(
                f"{checkpoint.name} was recorded while {listed(frozen)} was trained, which is "
                "frozen in the model now. Call requires_grad_(True) on it (a PEFT adapter: "
                "from_pretrained(..., is_trainable=True)), or leave it out by `parameters`."
            )
