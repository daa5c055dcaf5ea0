"""Leave the user's model, and how the process is set, as they were found."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn import Module

from tracin.eager import eagerly
from tracin.errors import LossError, UnsupportedModelError
from tracin.guards.guard import Guard
from tracin.precision import exact_matmuls
from tracin.recurrent import differentiable_recurrence


@contextmanager
def untouched(model: Module, *, allow_tf32: bool = False) -> Iterator[Module]:
    """On leaving, also by an exception or Ctrl-C, the model and torch's settings are as they were.

    `tracin.guards.Guard` lists what is restored. Within, `.grad` is None, so that nothing adds to
    the user's own, no other thread can use the model, products of float32 numbers are not made in
    TF32 (unless `allow_tf32` leaves that to torch's settings), and nothing compiled runs. The
    numbers in the user's own memory are not restored: put a checkpoint's in their place by
    `tracin.checkpoints.loaded`.

    Raises:
        LossError: Called inside `torch.inference_mode()`, where nothing has a gradient.
        ModelInUseError: Another thread holds the model indefinitely.
        UnsupportedModelError: The model was made in inference mode.

    Example:
        >>> import torch
        >>> model = torch.nn.Dropout(0.5)
        >>> with untouched(model):
        ...     _ = model.eval()
        >>> model.training
        True
    """
    _refuse_inference(model)
    guard = Guard(model)
    with guard, guard:
        for parameter in model.parameters():
            parameter.grad = None
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            # An autocast around the call keeps casts of weights, which would outlive a checkpoint.
            torch.set_autocast_cache_enabled(False)
        products = nullcontext() if allow_tf32 else exact_matmuls()
        with products, eagerly(), differentiable_recurrence(model):
            yield model


def use_eval(model: Module) -> None:
    """Put every module into eval mode, within a block that restores the modes."""
    for module in model.modules():
        # Not through eval(): some layers override it to fold weights into others.
        module.training = False


def _refuse_inference(model: Module) -> None:
    if torch.is_inference_mode_enabled():
        raise LossError(
            "This runs inside torch.inference_mode(), where no loss has a gradient, not even with "
            "gradients enabled again. Leave that block first; torch.no_grad() does no harm."
        )
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise UnsupportedModelError(
                f"{name} was made inside torch.inference_mode(), so no gradient can pass through "
                "it. Build or load the model outside of that block, or give a copy.deepcopy of "
                "it that was made outside."
            )
