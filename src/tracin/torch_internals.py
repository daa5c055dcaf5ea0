"""Every private name of torch that the package imports: what it is for, what would replace it.

A release of torch may change any of them without notice, so the engine's tests also run on the
oldest release that pyproject.toml allows (`make test-floor`). Attributes that torch itself
documents or tests are used where they are needed: `Tensor._version` (which writes a tensor has
seen), `Module._buffers` and `._non_persistent_buffers_set`, `Optimizer._optimizer_step_pre_hooks`,
and `_orig_mod` of a compiled module.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, _vmap_internals
from torch._C._functorch import (
    # Whether a tensor is one of torch.func's, of which no number can be read.
    is_functorch_wrapped_tensor as is_functorch_wrapped_tensor,
)

# The kinds of what `torch.ops` holds: whether such a function writes is in its schema.
from torch._ops import OpOverload as OpOverload
from torch._ops import OpOverloadPacket as OpOverloadPacket
from torch.autograd.graph import _engine_run_backward  # type: ignore[reportPrivateUsage]

# A property reaches a TorchFunctionMode as its getter: those of Tensor.T and Tensor.mT.
TRANSPOSE_GETTERS: tuple[Callable[..., Any], ...] = tuple(
    vars(torch._C.TensorBase)[name].__get__ for name in ("T", "mT")
)

# What torch.nn.utils.parametrizations.weight_norm calls; there is no public name.
weight_norm_function: Callable[..., Any] = torch._weight_norm  # type: ignore[reportPrivateImportUsage]


def is_view(tensor: Tensor) -> bool:
    """Whether autograd knows a tensor as a view of another; nothing public tells."""
    return tensor._is_view()


def renamed(tensor: Tensor) -> Tensor:
    """The same memory in a tensor that autograd does not take for a view.

    An in-place call on a view rewrites the graph of what it is a view of. A copy would do as well,
    for more memory.
    """
    return torch.ops.aten._unsafe_view(tensor, tensor.shape)


def pulled_back(output: Tensor, source: Tensor, rows: Tensor) -> Tensor | None:
    """Gradients of a tensor taken back to one that it was made of; None where it was not.

    As `torch.autograd.grad(..., is_grads_batched=True)` would, which imports sympy to compare
    shapes: 1.5 s of a process that is new.

    Args:
        output: The tensor, whose graph is kept.
        source: What it was made of.
        rows: Its gradients: [examples, *output].

    Returns:
        [examples, *source].
    """

    def one(row: Tensor) -> Any:
        return _engine_run_backward(
            (output,), (row,), True, False, (source,), True, accumulate_grad=False
        )

    return _vmap_internals._vmap(one, 0, 0, allow_none_pass_through=True)(rows)[0]


_NARROW = (torch.float16, torch.bfloat16)


def lengths_of(tensors: list[Tensor]) -> Tensor:
    """The lengths of some tensors, also where they go beyond what the tensors hold: [tensors].

    torch.linalg.vector_norm in a loop would do as well, by one kernel for each of them.
    """
    wide = [each.float() if each.dtype in _NARROW else each for each in tensors]
    lengths = torch._foreach_norm(wide)  # type: ignore[reportPrivateImportUsage]
    kind = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    return torch.stack([length.to(kind) for length in lengths])


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


# Devices whose products of half-precision numbers can be asked for in float32 (`out_dtype`, which
# torch has since 2.8, for NVIDIA's GPUs alone).
HALF_PRODUCTS_ON = (
    ("cuda",) if "dtype" in torch.ops.aten.mm.overloads() and torch.version.cuda else ()
)


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
    import torch itself, and code that compiles has imported it.
    """
    frame = sys.modules.get("torch._dynamo.eval_frame")
    return getattr(frame, "_stance", None)


def set_compiler_stance(stance: Any) -> None:
    """Put back what `compiler_stance` gave: the public function takes the names of stances only."""
    sys.modules["torch._dynamo.eval_frame"]._set_stance(stance)  # type: ignore[attr-defined]


# The stacks and switches that `tracin.guards.settings` notes and puts back: function and dispatch
# modes, transforms of torch.func, saved tensors' hooks, attention kernels. Most of them have no
# public door; its stubs leave them out.
C: Any = torch._C


def top_function_mode() -> Any:
    """The function mode that sees calls first; None without one. There is no public way to ask."""
    depth = C._len_torch_function_stack()
    return C._get_function_stack_at(depth - 1) if depth else None


def function_modes() -> list[Any]:
    """The function modes in place, the one that sees calls first in front."""
    return [C._get_function_stack_at(at) for at in reversed(range(C._len_torch_function_stack()))]


# What `torch.utils.checkpoint.checkpoint` looks up, whoever imported it: the functions that run a
# stretch of a model so that the backward pass runs it again. A stretch can be given contexts to run
# in (`context_fn`) only where the model's own code calls it. Where a release names them otherwise,
# models with activation checkpointing take slower methods.
CHECKPOINTED_AGAIN = "_checkpoint_without_reentrant_generator"
CHECKPOINTED_REENTRANT = "CheckpointFunction"


def is_transformed() -> bool:
    """Whether a transform of torch.func, such as vmap, is running."""
    return C._functorch.peek_interpreter_stack() is not None


def inner_tensors(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that hold a tensor's numbers; of quantised weights there may be several.

    `__tensor_flatten__` is how tensors made of tensors say so to torch.compile
    (torch.utils._python_dispatch), and has no public caller.
    """
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    names, _ = flatten()
    return [part for name in names for part in inner_tensors(getattr(tensor, name))]


def is_made_of_others(tensor: Tensor) -> bool:
    """Whether a tensor has no memory of its own, but that of other tensors."""
    return hasattr(tensor, "__tensor_flatten__")
