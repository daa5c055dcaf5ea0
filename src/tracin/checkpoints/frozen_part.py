"""The part of a model that training leaves alone, which a Recorder does not write."""

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.frozen_weights import (
    FrozenWeight,
    FrozenWeights,
    parameters_by_bare_name,
)
from tracin.checkpoints.readers.safetensors import refuse_unsavable
from tracin.checkpoints.state_dict import bare_name
from tracin.errors import CheckpointError
from tracin.plain_text import listed
from tracin.sharding import is_dtensor

Value = TypeVar("Value")


class FrozenPart:
    """Follows which parameters are frozen: requiring no gradient, and not in the optimizer.

    What was trained once is written ever after. A frozen weight that changes all the same (a
    teacher that averages, say) is written as well, if no file has left it out before; else it is
    refused, since its earlier numbers are gone.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer.
        is_written: Whether files hold frozen weights nevertheless.
        written: What the last file of a run that resumes holds.
        left_out: What that file leaves out.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        is_written: bool,
        written: Collection[str] = (),
        left_out: FrozenWeights | None = None,
    ) -> None:
        self._model, self._optimizer, self._is_written = model, optimizer, is_written
        self._written = set(map(bare_name, written))
        self._in_no_file: FrozenWeights = left_out or FrozenWeights({})
        self._known: dict[str, FrozenWeight] = dict(self._in_no_file.by_name)
        self._frozen: dict[str, Tensor] = {}
        self._sizes: tuple[int, ...] | None = None

    def thawed(self) -> dict[str, Tensor]:
        """The weights that files leave out and that are trained from now on; mostly none.

        Called before each step and each save: cheap where nothing changed.

        Raises:
            CheckpointError: One of them holds other numbers than it had in those files.
        """
        sizes = tuple(len(group["params"]) for group in self._optimizer.param_groups)
        if sizes == self._sizes and not any(one.requires_grad for one in self._frozen.values()):
            return {}
        self._sizes = sizes
        optimized = {id(one) for group in self._optimizer.param_groups for one in group["params"]}
        ours = parameters_by_bare_name(self._model)
        self._written |= {
            name for name, one in ours.items() if one.requires_grad or id(one) in optimized
        }
        self._frozen = {name: one for name, one in ours.items() if name not in self._written}
        for name in [] if self._is_written else [n for n in self._frozen if n not in self._known]:
            # The parts of a divided weight are on other ranks, which do not call this.
            if is_dtensor(self._frozen[name]) or self._frozen[name].is_meta:
                refuse_unsavable(name, self._frozen[name])
            self._known[name] = FrozenWeight.of(self._frozen[name])
        now = self._in_no_file.by_name.keys() & self._written & ours.keys()
        self._refuse_changed(name for name in now if not self._known[name].is_same(ours[name]))
        self._in_no_file = self._in_no_file.without(now)
        return {name: ours[name] for name in ours if name in now}

    def left_out(self) -> FrozenWeights:
        """What the next file leaves out; call `thawed` before.

        Raises:
            CheckpointError: A frozen weight changed after a file had left it out.
        """
        changed = {
            name
            for name, one in self._frozen.items()
            if name in self._known and not self._known[name].is_same(one)
        }
        self._refuse_changed(name for name in changed if name in self._in_no_file.by_name)
        self._written |= changed
        self._frozen = {n: one for n, one in self._frozen.items() if n not in changed}
        if self._is_written:
            return FrozenWeights({})
        self._in_no_file = FrozenWeights({name: self._known[name] for name in self._frozen})
        return self._in_no_file

    def _refuse_changed(self, names: Iterator[str]) -> None:
        if changed := list(names):
            raise CheckpointError(
                f"{listed(changed)} changed, though frozen (requires_grad is False) when the last "
                "checkpoint left it out: its earlier numbers are lost. Record with "
                "frozen_weights=True in a new folder, or put weights that change into the "
                "optimizer before the first save."
            )


def without_frozen(
    model: Module, state: Mapping[str, Value], left_out: FrozenWeights
) -> dict[str, Value]:
    """A state dict without frozen weights, and without what quantised ones save beside them."""
    frozen = left_out.by_name
    if not frozen:
        return dict(state)
    own = {
        bare_name(name): [
            bare_name(f"{name}.{one}" if name else one)
            for one, _ in module.named_parameters(recurse=False, remove_duplicate=False)
        ]
        for name, module in model.named_modules(remove_duplicate=False)
    }
    # Of modules all of whose weights are frozen, only buffers are known to change.
    modules = {
        name for name, names in own.items() if names and all(map(frozen.__contains__, names))
    }
    buffers = {bare_name(name) for name, _ in model.named_buffers(remove_duplicate=False)}
    return {
        key: value
        for key, value in state.items()
        if bare_name(key) not in frozen
        and (bare_name(key) in buffers or module_of(bare_name(key), own.keys()) not in modules)
    }


def module_of(key: str, modules: Collection[str]) -> str:
    """The name of the module that an entry of a state dict belongs to."""
    while key and key not in modules:
        key = key.rpartition(".")[0]
    return key
