"""Calls whose rows the data moved: whose each row is, the losses themselves say.

A router, a sort or a packing puts the rows of all examples in an order that only the batch knows.
One more backward pass, of losses that are multiplied by powers of two of either sign, finds each
row's owner: a row that one loss alone depends on has its gradient multiplied by that loss's factor,
exactly, in any precision. A row that depends on more than one, or none of the factors, is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.gradients.arguments import tensors_in
from tracin.gradients.forms import PerExampleGradient, Stacked, full
from tracin.gradients.layouts import Layout
from tracin.gradients.rules import Leaf, Use
from tracin.gradients.rules.rule import leaves_in
from tracin.out_of_memory import raise_if_out_of_memory

# Factors are 2^-16 to 2^16, of either sign.
_POWERS = 16
_FACTORS = 2 * (2 * _POWERS + 1)

# How far a row may be from its own gradient times the factor, relative to its largest entry.
_APART = 1e-3

_GROUPED = frozenset(
    getattr(owner, name)
    for owner, name in ((torch, "_grouped_mm"), (F, "grouped_mm"))
    if hasattr(owner, name)
)
_STACKED = frozenset({torch.bmm, Tensor.bmm, torch.matmul, Tensor.matmul, Tensor.__matmul__})
_BY_ROWS = frozenset(
    {F.linear, F.layer_norm, F.rms_norm, torch.mul, torch.add, *(
        getattr(Tensor, name)
        for name in ("mul", "__mul__", "__rmul__", "add", "__add__", "__radd__")
    )}
)  # fmt: skip


def factors_of(examples: int) -> list[Tensor]:
    """Factors of the losses, for as many backward passes as it takes to tell examples apart."""
    left = torch.arange(examples)
    factors: list[Tensor] = []
    while _FACTORS ** len(factors) < examples:
        digit, left = left % _FACTORS, left // _FACTORS
        sign = 1.0 - 2.0 * (digit % 2)
        factors.append(sign * torch.exp2((digit // 2 - _POWERS).double()))
    return factors


@final
class Routed:
    """One call on rows whose owners are found after the forward pass."""

    def __init__(
        self,
        name: str,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        examples: int,
        shape: Sequence[int],
    ) -> None:
        self.name = name
        self.output = Layout(0, 1)
        self.coded: list[Tensor] = []  # the output's gradient, for each set of factors
        leaves = dict.fromkeys([*leaves_in(args), *leaves_in(kwargs)])
        self.parts: list[tuple[Leaf, None]] = [(leaf, None) for leaf in leaves]
        self._func, self._examples, self._shape = func, examples, tuple(shape)
        self._args = [_kept(each) for each in args]
        self._kwargs = {key: _kept(each) for key, each in kwargs.items()}
        given = tensors_in(self._args, self._kwargs)
        self._versions = [(tensor, tensor._version) for tensor in given]

    def forms(self, delta: Tensor) -> list[tuple[Leaf, PerExampleGradient | Exception]]:
        """Each parameter's per-example gradients, from the gradient of the call's output."""
        leaves = [leaf for leaf, _ in self.parts]
        self.parts = []  # a later backward pass delivers nothing
        try:
            if any(tensor._version != version for tensor, version in self._versions):
                raise RuntimeError("an input was changed in place after the call")
            rows = full(delta).flatten(0, -2)
            owners = _owners(rows, [full(each).flatten(0, -2) for each in self.coded])
            if self._func in _GROUPED or self._func in _STACKED:
                return [(leaves[0], self._grouped(rows, owners))]
            return list(self._by_rule(rows, owners))
        except (RuntimeError, ValueError, IndexError) as error:  # IndexError: parameters of width 0
            raise_if_out_of_memory(error)
            return [(leaf, error) for leaf in leaves]

    def _by_rule(
        self, delta: Tensor, owners: Tensor
    ) -> Sequence[tuple[Leaf, PerExampleGradient | Exception]]:
        """By the rule of the call, on the rows in the order of their owners."""
        shelves = _Shelves(owners, self._examples)
        layouts: dict[int, Layout | None] = {}

        def arranged(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.shape[:-1] != self._shape[:-1]:
                raise RuntimeError("an argument of moved rows has other rows")
            put = shelves.put(value.flatten(0, -2))
            layouts[id(put)] = self.output
            return put

        args = [arranged(each) for each in self._args]
        kwargs = {key: arranged(each) for key, each in self._kwargs.items()}
        use = Use(self.name, self._func, self._examples, self.output, layouts)
        if not use.find_rule(args, kwargs):
            raise RuntimeError("no rule for moved rows")
        return use.forms(shelves.put(delta))

    def _grouped(self, delta: Tensor, owners: Tensor) -> Stacked:
        """Row r times the matrix of the group that it lies in.

        Groups end where `offs` says, or are those of a stack: [matrices, rows, width].
        """
        matrices = self._args[1].tensor.shape[0]
        places = torch.arange(len(owners), device=owners.device)
        if self._func in _STACKED:
            groups = places // self._args[0].shape[1]
        else:
            ends = self._kwargs["offs"] if "offs" in self._kwargs else self._args[2]
            groups = torch.searchsorted(ends.long().contiguous(), places, right=True)
        keys = torch.where(groups < matrices, owners * matrices + groups, -1)
        keys = torch.where(owners < 0, -1, keys)
        shelves = _Shelves(keys, self._examples * matrices)
        sides = [shelves.put(full(self._args[0]).flatten(0, -2)), shelves.put(delta)]
        left, right = (each.unflatten(0, (self._examples, matrices)) for each in sides)
        return Stacked(left.conj(), right)


def is_routable(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call treats each row, all dimensions but the last, by itself.

    Args:
        func: A torch function.
        args: Its arguments, with a Leaf in each parameter's place.
        kwargs: The same by name.
    """
    leaves = [*leaves_in(args), *leaves_in(kwargs)]
    data = [each for each in tensors_in(args, kwargs) if each.is_floating_point()]
    if len(data) != 1 or data[0].ndim < 2:
        return False
    if func in _GROUPED:
        is_stack = len(args) > 1 and isinstance(args[1], Leaf) and args[1].tensor.ndim == 3
        has_ends = kwargs.get("offs", args[2] if len(args) > 2 else None) is not None
        return is_stack and has_ends and len(leaves) == 1 and args[0].ndim == 2
    if func in _STACKED:
        is_stack = len(args) > 1 and isinstance(args[1], Leaf) and args[1].tensor.ndim == 3
        is_whole = is_stack and args[0].shape[:-2] == args[1].tensor.shape[:1]
        return is_whole and len(leaves) == 1
    most = 2 if func is F.linear else 1
    return func in _BY_ROWS and all(leaf.tensor.ndim <= most for leaf in leaves)


class _Shelves:
    """Puts rows of the same key next to each other: [rows, width] -> [keys, most rows, width]."""

    def __init__(self, keys: Tensor, count: int) -> None:
        order = keys.argsort(stable=True)
        self._order = order[int((keys < 0).sum()) :]  # rows without a key have no gradient
        keys = keys[self._order]
        counts = torch.bincount(keys, minlength=count)
        self._most = max(1, int(counts.max()))
        place = torch.arange(len(keys), device=keys.device) - (counts.cumsum(0) - counts)[keys]
        self._slots = keys * self._most + place
        self._count = count

    def put(self, rows: Tensor) -> Tensor:
        out = rows.new_zeros(self._count * self._most, rows.shape[-1])
        out[self._slots] = rows[self._order]
        return out.view(self._count, self._most, -1)


def _owners(delta: Tensor, coded: Sequence[Tensor]) -> Tensor:
    """The example of each row, -1 for rows without a gradient: [rows].

    Raises:
        RuntimeError: A row is no single example's.
    """
    largest, at = delta.abs().max(-1)
    owners = torch.zeros_like(at)
    is_used = largest != 0  # and where it is no number: it must not be lost
    for number, each in enumerate(coded):
        ratio = (each.gather(-1, at.unsqueeze(-1)) / delta.gather(-1, at.unsqueeze(-1))).squeeze(-1)
        ratio = torch.where(is_used, ratio, torch.ones_like(ratio))
        power = ratio.abs().log2().round()
        factor = torch.exp2(power) * ratio.sign()
        gap = (each - factor.unsqueeze(-1) * delta).abs().amax(-1)
        is_known = (gap <= _APART * factor.abs() * largest) & (power.abs() <= _POWERS)
        if not bool((is_known | ~is_used).all()):
            raise RuntimeError("rows that more than one example's loss depends on")
        digit = 2 * (power.long() + _POWERS) + (ratio < 0)
        owners += digit * _FACTORS**number
    return torch.where(is_used, owners, -1)


def _kept(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
