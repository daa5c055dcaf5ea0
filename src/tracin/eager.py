"""Passes run the model's own code, not what `torch.compile` made of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from tracin.process_wide import Setting, Undo
from tracin.torch_internals import compiler_stance, set_compiler_stance


def eagerly() -> AbstractContextManager[None]:
    """Have compiled functions, models and parts of models run as they were written.

    Rules watch torch functions, which compiled code no longer calls; and passes over single
    examples and over pairs of them would compile the model anew for every shape.
    """
    return _EAGERLY()


def _force_eager(keep: Callable[[Undo], None]) -> None:
    before = compiler_stance()
    if before is not None:
        keep(lambda: set_compiler_stance(before))
        torch.compiler.set_stance("force_eager")


_EAGERLY = Setting(_force_eager)
