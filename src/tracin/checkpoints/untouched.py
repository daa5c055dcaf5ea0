"""Leave a person's model, and the random state, as they were found."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn import Module

from tracin.eager import eagerly
from tracin.errors import LossError, UnsupportedModelError
from tracin.precision import exact_matmuls
from tracin.sharding import rest


@contextmanager
def untouched(model: Module) -> Iterator[Module]:
    """Do what you like within; on leaving, also by an exception, the model is as it was.

    What comes back: the mode of every submodule, every parameter's `requires_grad` and `.grad`,
    which tensors are the buffers, and the random state of Python, NumPy and torch (CUDA too,
    where it is in use). Within, `.grad` is None, so that nothing adds to the person's own.
    Weights and the numbers in buffers are `loaded`'s to bring back. Within, too, products of
    float32 numbers are not made in TF32, and nothing compiled runs.

    Raises:
        LossError: Called inside `torch.inference_mode()`, where nothing has a gradient.
        UnsupportedModelError: The model was made there.

    Example:
        >>> model = torch.nn.Dropout(0.5)
        >>> with untouched(model):
        ...     _ = model.eval()
        >>> model.training
        True
    """
    _refuse_inference(model)
    rest(model)
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [dict(module._buffers.items()) for module in modules]
    parameters = list(model.parameters())
    grads = [parameter.grad for parameter in parameters]
    needed = [parameter.requires_grad for parameter in parameters]
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    has_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if has_cuda else []
    try:
        for parameter in parameters:
            parameter.grad = None
        with exact_matmuls(), eagerly():
            yield model
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        rest(model)
        if has_cuda:
            torch.cuda.set_rng_state_all(cuda)
        for parameter, grad, is_needed in zip(parameters, grads, needed, strict=True):
            parameter.grad = grad
            if parameter.requires_grad != is_needed:
                parameter.requires_grad_(is_needed)
        for module, mode, names in zip(modules, modes, buffers, strict=True):
            # Not through train(): some layers override it to change weights on the way.
            module.training = mode
            if isinstance(module._buffers, dict):  # a scripted module's cannot be replaced
                module._buffers.clear()
                module._buffers.update(names)


def _refuse_inference(model: Module) -> None:
    if torch.is_inference_mode_enabled():
        raise LossError(
            "This runs inside torch.inference_mode(), where no loss has a gradient, not even with "
            "gradients enabled again. Leave that block first; torch.no_grad() is no hindrance."
        )
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise UnsupportedModelError(
                f"{name} was made inside torch.inference_mode(), so no gradient can pass through "
                "it. Build or load the model outside of that block, or give a copy.deepcopy of "
                "it that was made outside."
            )
