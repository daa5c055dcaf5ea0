"""Sees every torch function that takes a parameter while the loss is computed.

Functions are watched, not modules: a module called twice, tied weights, raw parameters and
functional models are seen for what they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tracin.gradients.arguments import tensors_in
from tracin.gradients.grad_hook import grad_hook
from tracin.gradients.layouts import (
    CallNames,
    Derived,
    Layout,
    Meeting,
    ShapeProbe,
    output_name,
)
from tracin.gradients.mode import Mode
from tracin.gradients.opening import opened
from tracin.gradients.refusals import refuse, refuse_live
from tracin.gradients.regions import (
    Again,
    Arguments,
    Call,
    Contexts,
    LaterUse,
    Region,
    Repeated,
    keep,
    kept_throughout,
    with_places,
)
from tracin.gradients.reordering import Reordering, puts_back
from tracin.gradients.routed import Routed, is_routable
from tracin.gradients.rules import Leaf, Use, mark, plain, steps_of
from tracin.gradients.writing import refuse_writes


class CallSink(Protocol):
    """Takes the uses of every parameter."""

    def derive(self, leaf: Leaf) -> None:
        """A tensor was made of parameters alone."""
        ...

    def meet(self, use: Use | LaterUse | Routed) -> Callable[[Tensor], None]:
        """A parameter met data; what comes back is called with the output's gradient."""
        ...


@final
class FunctionWatch(Mode):
    """Runs beneath the user's loss, and replaces parameters' gradients by those of call outputs.

    It cuts parameters off where they meet data, and reads the gradient of the call's output. A call
    without a rule stays as it is, so that its parameter stays in the graph of the loss and is found
    there (`reached`): an unknown use is known to be unknown.

    With `is_live` it runs beneath a training step: parameters stay where they are, so that the
    user's backward pass is what it would have been, and examples may be coupled: what is read is
    each one's share in the batch's gradient. Calls that may write into the storages `kept` raise
    WritesError instead.

    With `follows` rows that the data moved are noted in `routed`, with the place in the graph of
    what came of them, and whoever takes their gradients finds out whose they are.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        probe: ShapeProbe,
        examples: int,
        anchor: Tensor,
        sink: CallSink,
        *,
        is_live: bool = False,
        kept: frozenset[int] = frozenset(),
        follows: bool = False,
    ) -> None:
        super().__init__()
        self._follows = follows
        self.routed: list[tuple[Routed, GradientEdge, Callable[[Tensor], None]]] = []
        self.is_live = is_live
        self._untouchable = kept
        self._refuse = refuse_live if is_live else refuse
        self._has_begun = not is_live
        self._leaves = {id(p): Leaf(name, p, (name,)) for name, p in parameters.items()}
        self._roles = probe.roles
        self._reordering = Reordering(probe.judged, examples)
        self._examples = examples
        self._anchor = anchor
        self._sink = sink
        self._names = CallNames()
        self._scattered: set[int] = set()
        self._kept: list[Tensor] = []
        self._regularising: set[int] = set()
        self._regions: list[Region] = []  # those that the forward pass is in, the innermost last
        self.path = 0  # a hash of the functions called so far, in order
        self.reasons: dict[str, dict[str, None]] = {}  # parameter -> how its calls are read
        self.uncovered: dict[str, str] = {}  # live: parameter -> which call has no rule, and why

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.path = hash((self.path, func))
        leaves = [
            leaf for tensor in tensors_in(args, kwargs) if (leaf := self._leaves.get(id(tensor)))
        ]
        self._refuse(func, args, kwargs)
        if self._untouchable:
            refuse_writes(func, args, kwargs, self._untouchable)
        self._has_begun |= bool(leaves)
        moves = self._has_begun and self._reordering.judges(func, args, kwargs)
        if not leaves:
            return self._without_parameters(func, args, kwargs, moves)
        inside = opened(func)
        if inside is not None:
            with self:
                return inside(*args, **kwargs)
        name = self._names.name(func, [leaf.name for leaf in leaves])
        role = self._roles.get(name) if torch.is_grad_enabled() else None
        if isinstance(role, Derived) or self._picks_one(func, args):
            return self._derived(func, args, kwargs, name, leaves)
        if self._touches_scattered(args, kwargs):
            return self._unknown(func, args, kwargs, name, leaves, _MOVED)
        if isinstance(role, Meeting):
            return self._meeting(func, args, kwargs, name, role)
        return self._unknown(func, args, kwargs, name, leaves, _MIXED)

    def begin(self) -> None:
        """Enter the model: until then the training loop only puts the batch together."""
        self._has_begun = True

    def checkpoint(self) -> Contexts:
        """The contexts of a stretch under activation checkpointing."""
        region = Region()
        self._note_call(region)
        return self._within(region), Repeated(region, self._leaves)

    def is_leaf(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter, or made of parameters alone."""
        return id(tensor) in self._leaves

    @contextmanager
    def _within(self, region: Region) -> Iterator[None]:
        self._regions.append(region)
        try:
            yield
        finally:
            self._regions.pop()
            region.close()

    def _note_call(self, call: Call | Region) -> None:
        """Note what must be done where a stretch comes to a call again."""
        if self._regions:
            self._regions[-1].calls.append(call)

    def _as_it_is(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        output = func(*args, **kwargs)
        if any(tensor.requires_grad for tensor in tensors_in((output,), {})):
            self._note_call(Call(func, lambda args, kwargs: func(*args, **kwargs)))
        return output

    def _made(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """A call of parameters alone, which no stretch needs to repeat."""
        if not self._regions:
            return func(*args, **kwargs)
        with kept_throughout():
            output = func(*args, **kwargs)
        self._note_call(Call(func, lambda args, kwargs: output))
        return output

    def _later(self, use: Use, marked: Arguments, layouts: Mapping[int, Layout | None]) -> LaterUse:
        """A use in a stretch: its data is dropped, and comes back when the stretch is repeated."""
        later = LaterUse(use, marked, layouts, self._anchor)
        self._regions[-1].changes += [(*each, later) for each in use.read]
        use.let_go()
        self._note_call(Call(use.func, self._meet_again(use.func)))
        return later

    def _move_again(self, func: Callable[..., Any]) -> Again:
        def again(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
            marked = mark(args, self._leaves), mark(kwargs, self._leaves)
            return grad_hook(func(*plain(marked[0]), **plain(marked[1])), self._anchor, _nothing)

        return again

    def _meet_again(self, func: Callable[..., Any]) -> Again:
        """What was done with a call in which parameters met data, without handing anything on."""

        def again(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
            marked = mark(args, self._leaves), mark(kwargs, self._leaves)
            keep(self._anchor, with_places(marked)[1])
            output = func(*plain(marked[0]), **plain(marked[1]))
            return grad_hook(output, self._anchor, _nothing)

        return again

    def _unknown(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str,
        leaves: list[Leaf],
        reason: str,
    ) -> Any:
        """A call without a rule. Beneath a training step, a penalty on parameters alone is fine."""
        if self._follows and torch.is_grad_enabled():
            return self._route(func, args, kwargs, name, leaves, reason)
        output = self._as_it_is(func, args, kwargs)
        if not self.is_live or not torch.is_grad_enabled():
            return output
        made = [each for each in tensors_in((output,), {}) if each.requires_grad]
        if all(id(tensor) in self._leaves for tensor in tensors_in(args, kwargs)):
            roots = tuple(dict.fromkeys(root for leaf in leaves for root in leaf.roots))
            for place, tensor in enumerate(made):
                self._leaves.setdefault(id(tensor), Leaf(f"{name}[{place}]", tensor, roots))
                self._regularising.add(id(tensor))
                self._kept.append(tensor)
        elif made and not (
            func in _ADDS and all(id(leaf.tensor) in self._regularising for leaf in leaves)
        ):
            call, _, count = name.rpartition("#")
            if count != "1" and f"{call}#1" in self._roles and name not in self._roles:
                reason = "is called more often than in the loss"
            for leaf in leaves:
                self.uncovered |= dict.fromkeys(leaf.roots, f"{call.partition('(')[0]} {reason}")
        return output

    def _route(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str,
        leaves: list[Leaf],
        reason: str,
    ) -> Any:
        """A call on rows that the data moved, if it treats each row by itself."""
        marked, marked_by_name = mark(args, self._leaves), mark(kwargs, self._leaves)
        if not is_routable(func, marked, marked_by_name):
            output = self._as_it_is(func, args, kwargs)
            # A shape or a dtype carries no gradient.
            if any(tensor.requires_grad for tensor in tensors_in((output,), {})):
                self._note(leaves, f"{name} {reason}")
            return output
        self._note(leaves, "rows that the data moved")
        self._note_call(Call(func, self._move_again(func)))
        output = func(*plain(marked), **plain(marked_by_name))
        routed = Routed(name, func, marked, marked_by_name, self._examples, output.shape)
        output = grad_hook(output, self._anchor, _nothing)
        self.routed.append((routed, get_gradient_edge(output), self._sink.meet(routed)))
        self._scattered.add(id(output))
        self._kept.append(output)
        return output

    def _picks_one(self, func: Callable[..., Any], args: Sequence[Any]) -> bool:
        """Whether a call takes one matrix of a parameter, whichever the data says: an expert."""
        return (
            self._follows
            and torch.is_grad_enabled()
            and func is Tensor.__getitem__
            and id(args[0]) in self._leaves
            and isinstance(args[1], Tensor)
            and args[1].ndim == 0
            and args[1].dtype == torch.int64
        )

    def _without_parameters(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], moves: bool
    ) -> Any:
        output = func(*args, **kwargs)
        if puts_back(func):
            is_scattered = bool(args) and id(args[0]) in self._scattered
            if not is_scattered and self._has_begun and not self._touches_scattered(args, kwargs):
                is_scattered = self._reordering.writes_elsewhere(func, args, kwargs)
        else:
            is_scattered = moves or self._touches_scattered(args, kwargs)
        if is_scattered:
            # What is written to in place returns nothing.
            for tensor in tensors_in((args[0] if output is None else output,), {}):
                self._scattered.add(id(tensor))
                self._kept.append(tensor)
        return output

    def _touches_scattered(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        return bool(self._scattered) and any(
            id(tensor) in self._scattered for tensor in tensors_in(args, kwargs)
        )

    def _derived(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str,
        leaves: list[Leaf],
    ) -> Any:
        output = self._made(func, args, kwargs)
        roots = tuple(dict.fromkeys(root for leaf in leaves for root in leaf.roots))
        marked, marked_by_name = mark(args, self._leaves), mark(kwargs, self._leaves)
        steps = steps_of(func, marked, marked_by_name, output)
        for place, tensor in enumerate(tensors_in((output,), {})):
            if tensor.requires_grad and id(tensor) not in self._leaves:
                leaf = Leaf(
                    output_name(name, place, isinstance(output, Tensor)),
                    tensor,
                    roots,
                    steps,
                    tensor._version,
                )
                self._leaves[id(tensor)] = leaf
                self._sink.derive(leaf)
        return output

    def _meeting(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str,
        role: Meeting,
    ) -> Any:
        tensors = list(tensors_in(args, kwargs))
        inputs = {
            id(tensor): layout
            for tensor, layout in zip(tensors, role.inputs, strict=False)
            if layout is None or layout.fits(tensor, self._examples)
        }
        use = Use(name, func, self._examples, role.output, inputs, is_live=self.is_live)
        marked, marked_by_name = mark(args, self._leaves), mark(kwargs, self._leaves)
        leaves = [leaf for t in tensors if (leaf := self._leaves.get(id(t)))]
        if not use.find_rule(marked, marked_by_name):
            return self._unknown(func, args, kwargs, name, leaves, use.reason)
        self._note(leaves, use.reason)
        read: Use | LaterUse = use
        if self.is_live:
            output = func(*args, **kwargs)
        else:
            if self._regions:
                read = self._later(use, (marked, marked_by_name), inputs)
            output = func(*plain(marked), **plain(marked_by_name))
        if not isinstance(output, Tensor) or not role.output.fits(output, self._examples):
            raise UnlikeTrialError(name)
        if self.is_live and role.output.copies == 1:
            # Here the number of examples is what the training loop announced.
            rows = output.shape[role.output.dim]
            if rows != self._examples:
                raise UnlikeTrialError(f"{name} holds {rows} examples")
        return grad_hook(output, self._anchor, self._sink.meet(read))

    def _note(self, leaves: list[Leaf], reason: str) -> None:
        for leaf in leaves:
            for root in leaf.roots:
                self.reasons.setdefault(root, {})[reason] = None


def _nothing(delta: Tensor) -> None:
    """The backward pass takes the gradient by its place in the graph."""


# Why a call has no rule.
_MOVED = "has no rule for rows that the data moved"
_MIXED = "has no rule: its output does not hold each example in a place of its own"


class UnlikeTrialError(Exception):
    """A call gave an output of another kind than in the trial: another method covers the batch."""


# How a penalty joins a loss.
_ADDS = frozenset(
    {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.add_}
)
