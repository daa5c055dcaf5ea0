"""Stretches of a model under activation checkpointing: what the watch did there, done again.

`torch.utils.checkpoint` drops what a stretch keeps for the backward pass, and runs it once more
when the backward pass needs it. Both runs must keep the same tensors, so the second one cuts
parameters off where the first did. What a rule reads is kept in the stretch as well, so that it is
dropped and computed again like everything else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

from tracin.gradients.arguments import tensors_in
from tracin.gradients.forms import PerExampleGradient
from tracin.gradients.layouts import Layout
from tracin.gradients.mode import Mode
from tracin.gradients.opening import opened
from tracin.gradients.rules import Leaf, Use

# The contexts in which a stretch runs for the first time, and again.
Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]

# Those of a call, by place and by name, with a Leaf in each parameter's place.
Arguments = tuple[Sequence[Any], Mapping[str, Any]]


# Does with a call what was done in the first run, and returns its output.
Again = Callable[[Sequence[Any], Mapping[str, Any]], Any]


@final
@dataclass(frozen=True)
class Call:
    """A call that took a parameter, and what to do where the stretch comes to it again."""

    func: Callable[..., Any]
    again: Again


@final
@dataclass(eq=False)
class Region:
    """One stretch.

    Attributes:
        calls: Those that took a parameter and that gradients pass, in order, and the stretches
            within this one.
        changes: What rules read in the first run: each tensor, the count of its changes in place,
            and the use; empty once the first run is over.
    """

    calls: list["Call | Region"] = field(default_factory=list)
    changes: list[tuple[Tensor, int, "LaterUse"]] = field(default_factory=list)

    def close(self) -> None:
        """End the first run: note the uses whose inputs were changed in place since."""
        for tensor, version, use in self.changes:
            use.is_changed |= tensor._version != version
        self.changes.clear()


@final
class LaterUse:
    """A call in a stretch in which parameters meet data, read when its data is computed again."""

    def __init__(
        self, use: Use, marked: Arguments, layouts: Mapping[int, Layout | None], anchor: Tensor
    ) -> None:
        self.name, self.output = use.name, use.output
        self.parts: list[tuple[Leaf, None]] = [(leaf, None) for leaf, _ in use.parts]
        self.is_changed = False
        self._func, self._examples = use.func, use.examples
        self._arguments, data = with_places(marked)
        self._layouts = [layouts.get(id(tensor)) for tensor in data]
        self._kept = keep(anchor, data)

    def forms(self, delta: Tensor) -> list[tuple[Leaf, PerExampleGradient | Exception]]:
        """Each parameter's per-example gradients, from the gradient of the call's output."""
        leaves = [leaf for leaf, _ in self.parts]
        self.parts = []  # a later backward pass delivers nothing
        if not leaves:
            return []
        if self.is_changed:
            error = RuntimeError("an input was changed in place after the call")
            return [(leaf, error) for leaf in leaves]
        data: Sequence[Tensor] = self._kept.saved_tensors
        layouts = {id(t): layout for t, layout in zip(data, self._layouts, strict=True)}
        use = Use(self.name, self._func, self._examples, self.output, layouts)
        if not use.find_rule(*_filled(self._arguments, data)):
            return [(leaf, RuntimeError(use.reason)) for leaf in leaves]
        return use.forms(delta)


@final
class Repetition(Mode):
    """Runs beneath a stretch that is computed again: does with each call what was done before."""

    is_live = False

    def __init__(self, region: Region, leaves: Mapping[int, Leaf]) -> None:
        super().__init__()
        self._region = region
        self._at = 0  # in the region's calls
        self._leaves = leaves

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not any(id(tensor) in self._leaves for tensor in tensors_in(args, kwargs)):
            return func(*args, **kwargs)
        inside = opened(func)
        if inside is not None:
            with self:
                return inside(*args, **kwargs)
        call = self._expected
        if not isinstance(call, Call) or call.func != func or not torch.is_grad_enabled():
            # Nothing that a gradient passes: a parameter's shape, or what FSDP2 asks on its way in.
            return func(*args, **kwargs)
        self._at += 1
        return call.again(args, kwargs)

    def checkpoint(self) -> Contexts:
        """The contexts of the next stretch within this one."""
        region = self._expected
        if not isinstance(region, Region):
            raise RuntimeError(_OTHERWISE)
        self._at += 1
        return self._within(region), Repeated(region, self._leaves)

    @property
    def _expected(self) -> Call | Region | None:
        calls = self._region.calls
        return calls[self._at] if self._at < len(calls) else None

    def is_leaf(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter, or made of parameters alone."""
        return id(tensor) in self._leaves

    @contextmanager
    def _within(self, region: Region) -> Iterator[None]:
        outer = self._region, self._at
        self._region, self._at = region, 0
        try:
            yield
        finally:
            self._region, self._at = outer


@final
class Repeated(AbstractContextManager[None]):
    """Computes a stretch again, from its beginning each time that it is entered."""

    def __init__(self, region: Region, leaves: Mapping[int, Leaf]) -> None:
        self._region = region
        self._leaves = leaves
        self._running: list[Repetition] = []

    def __enter__(self) -> None:
        self._running.append(Repetition(self._region, self._leaves))
        self._running[-1].__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self._running.pop().__exit__(exc_type, exc_val, exc_tb)


def keep(anchor: Tensor, data: Sequence[Tensor]) -> Any:
    """Keep tensors as a call in the graph keeps them; `saved_tensors` of what is returned."""
    kept: Any = _Keep.apply(anchor, *(tensor.detach() for tensor in data))
    return kept.grad_fn


def kept_throughout() -> AbstractContextManager[Any]:
    """Has calls of parameters alone keep what they need: dropping it would save nothing."""
    # The tensor itself would be held by its own graph, in a cycle that nobody can collect.
    return saved_tensors_hooks(torch.Tensor.detach, lambda tensor: tensor)


class _Keep(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *data: Tensor) -> Tensor:
        ctx.save_for_backward(*data)
        return anchor.new_empty(0)


_OTHERWISE = "a stretch under activation checkpointing ran otherwise than the first time"


def with_places(marked: Arguments) -> tuple[Arguments, list[Tensor]]:
    """A call's arguments with a place for each data tensor, and the data tensors."""
    data: list[Tensor] = []
    args, kwargs = _with_places(marked[0], data), _with_places(marked[1], data)
    return (args, kwargs), data


def _with_places(values: Any, data: list[Tensor]) -> Any:
    if isinstance(values, Tensor):
        data.append(values)
        return _Place(len(data) - 1)
    if isinstance(values, Mapping):
        return {key: _with_places(each, data) for key, each in values.items()}
    if type(values) in (list, tuple):
        return type(values)([_with_places(each, data) for each in values])
    return values


def _filled(values: Any, data: Sequence[Tensor]) -> Any:
    """The arguments with the data tensors in their places."""
    if isinstance(values, _Place):
        return data[values.at]
    if isinstance(values, Mapping):
        return {key: _filled(each, data) for key, each in values.items()}
    if type(values) in (list, tuple):
        return type(values)([_filled(each, data) for each in values])
    return values


@dataclass(frozen=True)
class _Place:
    at: int
