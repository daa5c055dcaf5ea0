"""Takes off what trainers put around a model, so that examples are scored on the model itself."""

import sys

from torch.nn import DataParallel, Module
from torch.nn.parallel import DistributedDataParallel

from tracin.errors import UnsupportedModelError
from tracin.plain_text import a_kind

COMPILED = "_orig_mod"


def unwrapped(model: Module) -> Module:
    """The model within its wrappers: DistributedDataParallel, DataParallel, compiled, DeepSpeed.

    A forward pass through such a wrapper talks to other ranks, splits the batch over devices, or
    runs compiled code in which no call can be watched. The parameters are the same objects.

    Raises:
        UnsupportedModelError: It is no module; or a part of it is an FSDP1 module, a
            DistributedDataParallel one, or has weights that ZeRO-3 has spread over ranks.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> unwrapped(torch.nn.DataParallel(model)) is model
        True
    """
    if not isinstance(model, Module):
        raise UnsupportedModelError(
            f"The model must be a torch.nn.Module, but {a_kind(model)} was given."
        )
    while (within := _within(model)) is not None:
        model = within
    for name, part in model.named_modules():
        _refuse_divided(name, part)
    _refuse_zero(model)
    return model


def _within(model: Module) -> Module | None:
    """What one wrapper holds; None where the model is none."""
    if isinstance(model, DataParallel | DistributedDataParallel) or _is_deepspeed(model):
        return model.module  # type: ignore[return-value]
    return dict(model.named_children()).get(COMPILED)  # a scripted module keeps no dict of them


def _is_deepspeed(model: Module) -> bool:
    return any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__)


def _refuse_divided(name: str, part: Module) -> None:
    # Code that wrapped a model has imported this; other code need not wait for the import.
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    where = f"Its part '{name}'" if name else "The model"
    if fsdp is not None and isinstance(part, fsdp):
        raise UnsupportedModelError(
            f"{where} is wrapped in FullyShardedDataParallel (FSDP1), which keeps flat pieces of "
            "weights in the parameters' place. Score the bare model in one process, from whole "
            "checkpoints: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)) writes them. Or divide the bare model "
            "by torch.distributed.fsdp.fully_shard (FSDP2), which is supported."
        )
    if isinstance(part, DistributedDataParallel):
        raise UnsupportedModelError(
            f"{where} is wrapped in DistributedDataParallel, whose forward pass talks to the other "
            f"ranks. Give a model that holds the bare part: model.{name} = model.{name}.module."
        )


def _refuse_zero(model: Module) -> None:
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id") and parameter.numel() == 0:
            raise UnsupportedModelError(
                f"'{name}' is spread over ranks by DeepSpeed's ZeRO-3, and this rank holds no part "
                "of it that can be used. Build the model without DeepSpeed, and give checkpoints "
                "made whole by zero_to_fp32.py."
            )
