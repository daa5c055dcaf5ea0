"""Says where a model's own activation checkpointing saves no memory: in eval mode."""

import logging

from torch.nn import Module

_log = logging.getLogger(__name__)


def note_inactive_checkpointing(model: Module) -> None:
    """Note in the log that a Hugging Face model was asked to checkpoint, which it does in training.

    Args:
        model: Any.
    """
    layers = [each for each in model.modules() if getattr(each, "gradient_checkpointing", False)]
    if layers:
        _log.info(
            "gradient checkpointing is off in eval mode, in which scores are computed, so an "
            "example takes the memory of a plain pass (%s, with %d more); to keep it on, wrap the "
            "layers' forward in torch.utils.checkpoint.checkpoint",
            type(layers[0]).__name__,
            len(layers) - 1,
        )
