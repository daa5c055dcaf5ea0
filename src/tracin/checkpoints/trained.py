"""Which parameters a training has trained: those in the optimizer that required a gradient."""

from collections.abc import Iterable

from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.names import bare_name


class TrainedNames:
    """Collects the names of trained parameters, step by step; freezing later takes none away.

    Args:
        model: The model, for its parameters' names.
        optimizer: Its optimizer.
        names: What an earlier run has collected.
    """

    def __init__(self, model: Module, optimizer: Optimizer, names: Iterable[str] = ()) -> None:
        self._model, self._optimizer = model, optimizer
        self._names = set(names)
        self._flags: list[bool] = []

    def look(self) -> None:
        """Add what is trained now; cheap where nothing changed."""
        held = [one for group in self._optimizer.param_groups for one in group["params"]]
        flags = [one.requires_grad for one in held]
        if flags == self._flags:
            return
        self._flags = flags
        trained = {id(one) for one, flag in zip(held, flags, strict=True) if flag}
        self._names |= {
            bare_name(name)
            for name, one in self._model.named_parameters(remove_duplicate=False)
            if id(one) in trained
        }

    def names(self) -> tuple[str, ...]:
        """All names so far, sorted."""
        return tuple(sorted(self._names))
