"""The point where a call's output gradient is read, while the backward pass goes by."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from tracin.torch_internals import is_view, renamed

Deliver = Callable[[Tensor], None]


class _Tap(Function):
    """Hands the tensor itself on, marked as changed, so that later in-place calls stay legal.

    A leaf that requires grad would forbid them, and ReLU(inplace=True) after a convolution is
    common.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, deliver: Deliver) -> Tensor:
        ctx.deliver = deliver
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *deltas: Any) -> tuple[Tensor, None, None]:
        ctx.deliver(deltas[0])
        return deltas[0], None, None


def grad_hook(output: Tensor, anchor: Tensor, deliver: Deliver) -> Tensor:
    """Have `deliver` called with the gradient of `output`, on the way back from the loss.

    Args:
        output: A call's output; it is handed on with the same values.
        anchor: A leaf that requires grad, for outputs that nothing before them makes part of the
            graph.
        deliver: Called once, inside the backward pass.
    """
    if output.requires_grad:
        if is_view(output):
            # Or an in-place call later would rewrite the graph under the hook.
            output = renamed(output)
        # A hook gets the gradient of the values as they are now, whatever changes them later.
        output.register_hook(deliver)
        return output
    # A view may not be marked as changed; the same memory under a new name may.
    tapped: Any = _Tap.apply(output.data if is_view(output) else output, anchor, deliver)
    return tapped


def new_anchor(device: torch.device) -> Tensor:
    """The leaf that the taps of one pass hang on."""
    return torch.zeros((), device=device, requires_grad=True)
