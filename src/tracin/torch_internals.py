"""Every private name of torch that the package uses: what it is for, and what would replace it.

A release of torch may change any of them without notice, so the engine's tests also run on the
oldest release that pyproject.toml allows (`make test-floor`).
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch

# Whether cuDNN may compute in TF32. The public property, torch.backends.cudnn.allow_tf32, cannot be
# set after torch.backends.disable_global_flags().
allows_tf32 = torch._C._get_cudnn_allow_tf32
allow_tf32 = torch._C._set_cudnn_allow_tf32


def get_fp32_precision(backend: str, operator: str) -> str:
    """The float32 precision of an operator, "ieee", "tf32", "bf16" or "none", since torch 2.9.

    The public properties (torch.backends.cudnn.conv.fp32_precision, ...) wrap this function, but
    cannot be set after torch.backends.disable_global_flags(). Earlier releases of torch have none.
    """
    get = getattr(torch._C, "_get_fp32_precision_getter", None)
    return "none" if get is None else get(backend, operator)


def set_fp32_precision(backend: str, operator: str, value: str) -> None:
    """Set what `get_fp32_precision` gives; releases without such a setting ignore it."""
    set_ = getattr(torch._C, "_set_fp32_precision_setter", None)
    if set_ is not None:
        set_(backend, operator, value)


def graph_dtypes(node: Any) -> Iterator[torch.dtype]:
    """The kinds of numbers that a node of autograd's graph takes gradients of: its outputs'.

    `_input_metadata` is the only way to them; without it, precision is judged by the losses and
    the parameters alone.
    """
    for metadata in getattr(node, "_input_metadata", ()):
        yield metadata.dtype


def compiler_stance() -> Any:
    """What `torch.compiler.set_stance` has set; None if nothing was ever compiled.

    There is no public way to ask. To import `torch._dynamo` only to ask would take longer than to
    import torch itself, and whoever compiles has imported it.
    """
    frame = sys.modules.get("torch._dynamo.eval_frame")
    return getattr(frame, "_stance", None)


def set_compiler_stance(stance: Any) -> None:
    """Put back what `compiler_stance` gave: the public function takes the names of stances only."""
    sys.modules["torch._dynamo.eval_frame"]._set_stance(stance)  # type: ignore[attr-defined]
