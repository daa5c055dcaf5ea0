"""The point where a call's output gradient is read, while the backward pass goes by."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

Deliver = Callable[[Tensor], None]


class _InPlaceTap(Function):
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


class _ViewTap(Function):
    """The same for an output that is a view (an expanded class token), which may not be marked."""

    @staticmethod
    def forward(ctx: FunctionCtx, output: Tensor, anchor: Tensor, deliver: Deliver) -> Tensor:
        ctx.deliver = deliver  # pyright: ignore[reportAttributeAccessIssue]  # torch's own custom
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *deltas: Any) -> tuple[Tensor, None, None]:
        ctx.deliver(deltas[0])
        return deltas[0], None, None


def tap(output: Tensor, anchor: Tensor, deliver: Deliver) -> Tensor:
    """Have `deliver` called with the gradient of `output`, on the way back from the loss.

    Args:
        output: A call's output; it is handed on with the same values.
        anchor: A leaf that requires grad, and the only input of the backward pass: whatever
            leads to it is walked, and nothing else.
        deliver: Called once, inside the backward pass.
    """
    kind = _ViewTap if output._is_view() else _InPlaceTap
    tapped = kind.apply(output, anchor, deliver)
    return tapped  # pyright: ignore[reportReturnType]  # torch types `apply` as Any


def new_anchor(device: torch.device) -> Tensor:
    """The leaf that all taps of one pass hang on."""
    return torch.zeros((), device=device, requires_grad=True)
