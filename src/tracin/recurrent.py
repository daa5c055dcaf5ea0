"""Recurrent layers on NVIDIA's GPUs: cuDNN has no backward pass for layers in eval mode."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import Module, RNNBase
from torch.overrides import TorchFunctionMode

CALLS = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_DROPOUT, _TRAIN = 3, 4  # how far behind the list of weights


def differentiable_recurrence(model: Module) -> AbstractContextManager[object]:
    """Have recurrent layers of a model in eval mode compute what can be differentiated.

    cuDNN refuses: "cudnn RNN backward can only be called in training mode". Training mode without
    dropout computes the same numbers.
    """
    is_recurrent = any(isinstance(module, RNNBase) for module in model.modules())
    return _AsInTraining() if is_recurrent and torch.cuda.is_available() else nullcontext()


class _AsInTraining(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in CALLS and args[0].is_cuda:
            with warnings.catch_warnings():
                # Checkpoints and copies of the weights are not one piece of memory.
                warnings.filterwarnings("ignore", "RNN module weights are not part of single")
                return func(*without_dropout(args), **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def without_dropout(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call that trains; the list of weights is third, or fourth when packed."""
    weights = next(at for at in (2, 3) if isinstance(args[at], list))
    if args[weights + _TRAIN]:
        return args
    changed = list(args)
    changed[weights + _DROPOUT], changed[weights + _TRAIN] = 0.0, True
    return tuple(changed)
