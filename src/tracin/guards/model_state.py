"""What a block may change of a model: tensors, their memory, gradients, flags, modes, hooks."""

from dataclasses import dataclass
from typing import Any, Self, final

from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

# Tables that torch keeps in each module, in which entries come and go.
TABLES = ("_parameters", "_buffers", "_modules")


@final
@dataclass(frozen=True, eq=False)
class TensorState:
    """One parameter or buffer."""

    tensor: Tensor
    data: Tensor | None  # None where the memory cannot be exchanged, and so never was
    grad: Tensor | None
    needs_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Its state at this moment."""
        is_plain = not is_lazy(tensor) and type(tensor.data) is Tensor
        return cls(tensor, tensor.data if is_plain else None, tensor.grad, tensor.requires_grad)

    def put_back(self) -> None:
        """Restore it."""
        tensor = self.tensor
        if self.data is not None and not _is_same_memory(tensor, self.data):
            tensor.data = self.data
        if tensor.requires_grad != self.needs_grad:
            tensor.requires_grad_(self.needs_grad)
        if tensor.grad is not self.grad:
            tensor.grad = self.grad


@final
@dataclass(frozen=True, eq=False)
class ModuleState:
    """One module: its attributes, and torch's tables among them."""

    module: Module
    training: bool
    attributes: dict[str, Any]
    tables: list[tuple[dict[Any, Any], dict[Any, Any]]]  # a table, and its entries

    @classmethod
    def of(cls, module: Module) -> Self:
        """Its state at this moment."""
        attributes = vars(module).copy()
        tables = [
            (table, table.copy())
            for name, table in attributes.items()
            # A scripted module's are no dicts, and cannot be changed.
            if isinstance(table, dict) and (name in TABLES or name.endswith("hooks"))
        ]
        return cls(module, module.training, attributes, tables)

    def put_back(self) -> None:
        """Restore it."""
        # Not through train() or setattr: some layers override them to change weights on the way.
        now = vars(self.module)
        if not is_same_table(now, self.attributes):
            for name in now.keys() - self.attributes.keys():
                del now[name]
            now.update(self.attributes)
        if self.module.training != self.training:  # of a scripted module no attribute
            self.module.training = self.training
        for table, entries in self.tables:
            if not is_same_table(table, entries):
                table.clear()
                table.update(entries)


@final
@dataclass(frozen=True, eq=False)
class ModelState:
    """A model and all its parts."""

    modules: list[ModuleState]
    tensors: list[TensorState]

    @classmethod
    def of(cls, model: Module) -> Self:
        """Its state at this moment."""
        tensors = {id(one): one for one in (*model.parameters(), *model.buffers())}
        return cls(
            [ModuleState.of(module) for module in model.modules()],
            [TensorState.of(tensor) for tensor in tensors.values()],
        )

    def put_back(self) -> None:
        """Restore it."""
        for module in self.modules:
            module.put_back()
        for tensor in self.tensors:
            tensor.put_back()


def _is_same_memory(one: Tensor, other: Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.device == other.device
    )


def is_same_table(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Whether two tables have the same objects in the same order."""
    return list(one) == list(other) and all(one[key] is other[key] for key in other)
