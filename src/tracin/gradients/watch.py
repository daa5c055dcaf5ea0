"""Sees every torch function that takes a parameter while the loss is computed.

Functions are watched, not modules: a module called twice, tied weights, raw parameters and
functional models are seen for what they are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tracin.errors import CoupledExamplesError, LossError
from tracin.gradients.layouts import (
    CallNames,
    Derived,
    Meeting,
    Role,
    output_name,
    tensors_in,
)
from tracin.gradients.opening import opened
from tracin.gradients.rules import Leaf, Use, mark, plain
from tracin.gradients.tap import tap


class Ledger(Protocol):
    """Who keeps account of the uses of every parameter."""

    def derive(self, leaf: Leaf) -> None:
        """A tensor was made of parameters alone."""
        ...

    def meet(self, use: Use) -> Callable[[Tensor], None]:
        """A parameter met data; what comes back is called with the output's gradient."""
        ...


@final
class Watch(TorchFunctionMode):
    """Runs beneath the user's loss: cuts parameters off where they meet data, and taps the outputs.

    A call that has no rule is left as it is, so that its parameter stays in the graph of the loss
    and is found there (`reached`): an unknown use is known to be unknown.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        roles: Mapping[str, Role],
        examples: int,
        anchor: Tensor,
        ledger: Ledger,
    ) -> None:
        super().__init__()
        self._leaves = {id(p): Leaf(name, p, (name,)) for name, p in parameters.items()}
        self._roles = roles
        self._examples = examples
        self._anchor = anchor
        self._ledger = ledger
        self._names = CallNames()
        self._scattered: set[int] = set()
        self._kept: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        leaves = [
            leaf for tensor in tensors_in(args, kwargs) if (leaf := self._leaves.get(id(tensor)))
        ]
        if func in _REFUSED:
            _REFUSED[func](args, kwargs)
        if not leaves:
            return self._without_parameters(func, args, kwargs)
        inside = opened(func)
        if inside is not None:
            with self:
                return inside(*args, **kwargs)
        name = self._names.name(func, [leaf.name for leaf in leaves])
        role = self._roles.get(name) if torch.is_grad_enabled() else None
        if isinstance(role, Derived):
            return self._derived(func, args, kwargs, name, leaves)
        if isinstance(role, Meeting) and not self._touches_scattered(args, kwargs):
            return self._meeting(func, args, kwargs, name, role)
        return func(*args, **kwargs)

    def _without_parameters(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        output = func(*args, **kwargs)
        if self._scattered or func in _SCATTERING:
            if func in _GATHERING:
                scattered = bool(args) and id(args[0]) in self._scattered
            else:
                scattered = _scatters(func, args, self._examples) or self._touches_scattered(
                    args, kwargs
                )
            if scattered:
                for tensor in tensors_in((output,), {}):
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
        output = func(*args, **kwargs)
        roots = tuple(dict.fromkeys(root for leaf in leaves for root in leaf.roots))
        for place, tensor in enumerate(tensors_in((output,), {})):
            if tensor.requires_grad and id(tensor) not in self._leaves:
                source = leaves[0] if _transposes(func, args, leaves) else None
                leaf = Leaf(
                    output_name(name, place, isinstance(output, Tensor)), tensor, roots, source
                )
                self._leaves[id(tensor)] = leaf
                self._ledger.derive(leaf)
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
        use = Use(name, func, self._examples, role.output, inputs)
        marked, marked_by_name = mark(args, self._leaves), mark(kwargs, self._leaves)
        if not use.find_rule(marked, marked_by_name):
            return func(*args, **kwargs)
        output = func(*plain(marked), **plain(marked_by_name))
        if not isinstance(output, Tensor) or not role.output.fits(output, self._examples):
            raise UnlikeTrialError(name)
        return tap(output, self._anchor, self._ledger.meet(use))


class UnlikeTrialError(Exception):
    """A call gave an output of another kind than in the trial: the batch takes another way."""


def reached(losses: Tensor, parameters: Mapping[str, Tensor]) -> set[str]:
    """The parameters that the graph of `losses` still leads to: used where no rule saw it."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: set[str] = set()
    seen: set[Any] = set()
    nodes = [losses.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in names:
            found.add(names[id(variable)])
        nodes.extend(following for following, _ in node.next_functions)
    return found


_TRANSPOSES = frozenset(
    {torch.t, Tensor.t, Tensor.T.__get__, Tensor.mT.__get__, torch.transpose, Tensor.transpose}
)


def _transposes(func: Callable[..., Any], args: Sequence[Any], leaves: list[Leaf]) -> bool:
    """Whether a call swaps the two sides of one matrix, so that its gradient keeps its factors."""
    if func not in _TRANSPOSES or len(leaves) != 1 or leaves[0].tensor.ndim != 2:
        return False
    dims = [dim % 2 for dim in args[1:] if isinstance(dim, int)]
    return not dims or sorted(dims) == [0, 1]


# Calls that pick rows by a mask or by numbers found in the data: whose rows they are is then
# unknown, and the parameters that meet them take another way.
_SCATTERING = frozenset(
    {
        Tensor.__getitem__,
        torch.index_select,
        Tensor.index_select,
        torch.masked_select,
        Tensor.masked_select,
        torch.nonzero,
        Tensor.nonzero,
        torch.where,
        torch.unique,
        Tensor.unique,
        torch.take,
        Tensor.take,
    }
)

# Calls that put such rows back: their output lies as their first argument does.
_GATHERING = frozenset(
    {
        torch.index_add,
        Tensor.index_add,
        Tensor.index_add_,
        torch.index_copy,
        Tensor.index_copy,
        Tensor.index_copy_,
        torch.index_put,
        Tensor.index_put,
        Tensor.index_put_,
        torch.scatter,
        Tensor.scatter,
        Tensor.scatter_,
        torch.scatter_add,
        Tensor.scatter_add,
        Tensor.scatter_add_,
        torch.masked_scatter,
        Tensor.masked_scatter,
        Tensor.masked_scatter_,
        Tensor.__setitem__,
    }
)


def _scatters(func: Callable[..., Any], args: Sequence[Any], examples: int) -> bool:
    if func not in _SCATTERING:
        return False
    if func is torch.where:
        return len(args) == 1
    if func is not Tensor.__getitem__:
        return True
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    first = index[0] if index else None
    if isinstance(first, Tensor) and first.dtype != torch.bool and first.ndim == 1:
        # hidden[arange(examples), last]: one row an example, in order.
        rows = torch.arange(examples, device=first.device)
        return not (first.shape == rows.shape and bool((first == rows).all()))
    return any(isinstance(each, Tensor) and each.ndim > 0 for each in index[:1]) or any(
        isinstance(each, Tensor) and each.dtype == torch.bool for each in index
    )


def _refuse_training_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    training = kwargs.get("training", args[5] if len(args) > 5 else False)
    if training:
        raise CoupledExamplesError(
            "BatchNorm runs in train mode inside the loss, so each example's loss depends on its "
            "whole batch and has no gradient of its own. tracin puts the model in eval mode; "
            "leave out the call of model.train() in the loss."
        )


def _refuse_dropout(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    if kwargs.get("training", args[2] if len(args) > 2 else True) and rate > 0:
        raise LossError(
            "Dropout is active inside the loss, so the scores would be random. tracin puts the "
            "model in eval mode; leave out the call of model.train() in the loss."
        )


_REFUSED: dict[Callable[..., Any], Callable[[Sequence[Any], Mapping[str, Any]], None]] = {
    F.batch_norm: _refuse_training_norm,
    F.dropout: _refuse_dropout,
    F.dropout1d: _refuse_dropout,
    F.dropout2d: _refuse_dropout,
    F.dropout3d: _refuse_dropout,
}
