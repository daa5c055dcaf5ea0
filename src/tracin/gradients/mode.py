"""A function mode that an interrupt cannot leave on the stack, or take another one's place."""

from types import TracebackType

from torch.overrides import TorchFunctionMode

from tracin.torch_internals import top_function_mode


class Mode(TorchFunctionMode):
    """Leaves the stack as it is where torch, interrupted while it ran a call, took the mode off."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if top_function_mode() is self:
            super().__exit__(exc_type, exc_val, exc_tb)
