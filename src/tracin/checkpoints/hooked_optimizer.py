"""The optimizer whose steps can be heard: the bare one within a trainer's wrapper."""

from typing import Any

from torch.optim import Optimizer

from tracin.errors import TracInError

# Wrappers whose step is the step of their `optimizer`, and nothing more.
_TRANSPARENT = ("AcceleratedOptimizer", "LightningOptimizer")


def bare_optimizer(optimizer: Any, listener: str, error: type[TracInError]) -> Optimizer:
    """The optimizer itself, or the one within the wrapper of Accelerate or Lightning.

    Args:
        optimizer: What the user gave.
        listener: What listens to it, such as "Recorder".
        error: The kind of error to raise.

    Raises:
        TracInError: It is no optimizer, or one to which nobody can listen: a wrapper that does not
            call torch.optim.Optimizer.__init__.
    """
    kind = type(optimizer).__name__
    if any(one.__name__ in _TRANSPARENT for one in type(optimizer).__mro__):
        return bare_optimizer(getattr(optimizer, "optimizer", None), listener, error)
    if not isinstance(optimizer, Optimizer):
        raise error(
            f"The {listener} listens to a torch.optim.Optimizer; a {kind} was given. If it is a "
            "wrapper, pass the optimizer that it wraps."
        )
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise error(
            f"The {listener} cannot listen to this {kind}: it is a torch.optim.Optimizer whose "
            "__init__ did not call torch.optim.Optimizer.__init__, so it has no hooks. Pass the "
            "optimizer that it wraps, or call super().__init__ there."
        )
    return optimizer
