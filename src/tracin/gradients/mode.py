"""A function mode that an interrupt cannot leave on the stack, or take another one's place."""

from types import TracebackType

import torch
from torch.overrides import TorchFunctionMode


class Mode(TorchFunctionMode):
    """Leaves the stack as it is where torch, interrupted while it ran a call, took the mode off."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        depth = torch._C._len_torch_function_stack()
        if depth and torch._C._get_function_stack_at(depth - 1) is self:
            super().__exit__(exc_type, exc_val, exc_tb)
