"""Whether a replay arrives at the recorded weights."""

from dataclasses import dataclass
from typing import final

import torch
from torch.nn import Module

from tracin.checkpoints import Checkpoint, bare_name
from tracin.checkpoints.state_dict import without_wrappers


@final
@dataclass(frozen=True)
class CheckpointMatch:
    """How the weights of a replay compare with those of a recorded checkpoint.

    Attributes:
        checkpoint: Its name.
        step: How many steps came before it.
        is_equal: Whether all weights and buffers are the same, bit for bit.
        difference: The length of the difference of the weights, over the checkpoint's length.
    """

    checkpoint: str
    step: int
    is_equal: bool
    difference: float


def match_checkpoint(model: Module, checkpoint: Checkpoint, step: int) -> CheckpointMatch:
    """Compare a model's weights with a checkpoint's."""
    saved = checkpoint.weights()
    names = {bare_name(name) for name, _ in model.named_parameters()}
    ours = without_wrappers(
        {key: one.detach().cpu() for key, one in model.state_dict().items() if key is not None}
    )
    is_equal, apart, length = True, 0.0, 0.0
    for name, there in saved.items():
        here = ours[name]
        is_equal = is_equal and torch.equal(here, there.to(here.dtype))
        if name in names:
            apart += float((here.double() - there.double()).square().sum())
            length += float(there.double().square().sum())
    return CheckpointMatch(
        checkpoint.name, step, is_equal, (apart / length) ** 0.5 if length else apart
    )
