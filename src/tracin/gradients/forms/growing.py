"""Gradients of one parameter that come batch by batch, joined in memory that is taken once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from tracin.gradients.forms.dense import Dense
from tracin.gradients.forms.form import PerExampleGradient
from tracin.gradients.forms.outer import OuterProduct
from tracin.gradients.forms.rows import SparseRows
from tracin.gradients.forms.stacked import Stacked
from tracin.gradients.forms.streamed import Streamed
from tracin.gradients.forms.total import SumOf

# How many times the positions of the shorter batch the longer may have, for both to be joined.
MOST_FILLED = 2


@final
class Growing:
    """The gradients of one parameter for a set of queries, of which batches are added in order.

    Batches of one form are joined, shorter ones filled up with positions of zeros, so that a set
    costs the same products in one batch as in many.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def add(self, row: int, form: PerExampleGradient, most: int) -> None:
        """Add the gradients of some queries; the parts of a sum are held by themselves.

        Args:
            row: The first of them.
            form: Their gradients. Those of the first batch are kept as they are.
            most: How many queries there will be, at most. With the second batch, memory for all is
                taken at once: parts of it would lie between what each batch leaves behind.
        """
        if isinstance(form, SumOf):
            for each in form.forms:
                self.add(row, each, most)
            return
        tensors = _tensors(form)
        if tensors is None:
            self._runs.append(_Run(row, form.examples, form, None))
            return
        tensors = [tensor.detach() for tensor in tensors]
        for run in self._runs:
            if run.takes(row, form, tensors):
                run.put(tensors, most - run.start)
                return
        kind = _with_tensors(form, [tensor.new_empty(0, *tensor.shape[1:]) for tensor in tensors])
        self._runs.append(_Run(row, form.examples, kind, tensors))

    def cut(self, rows: int) -> None:
        """Keep the first `rows` queries alone."""
        self._runs = [run for run in self._runs if run.start < rows]
        for run in self._runs:
            run.count = min(run.count, rows - run.start)

    @property
    def forms(self) -> list[tuple[int, PerExampleGradient]]:
        """Gradients of some queries each, with the first of their rows; all that meet add up."""
        return [(run.start, run.form) for run in self._runs]

    @property
    def bytes(self) -> int:
        """What the gradients added so far take, without memory taken for those to come."""
        return sum(run.bytes for run in self._runs)


@final
@dataclass(eq=False)
class _Run:
    """Queries one after the other whose gradients have one form."""

    start: int
    count: int
    kind: PerExampleGradient  # of no example, or all there is where nothing is joined
    held: list[Tensor] | None  # may have room for more; None for a form that is not joined

    @property
    def form(self) -> PerExampleGradient:
        if self.held is None:
            return self.kind.part(0, self.count)
        return _with_tensors(self.kind, [tensor[: self.count] for tensor in self.held])

    @property
    def bytes(self) -> int:
        if self.held is None:
            return 4 * self.count * self.kind.numbers
        return sum(self.count * each[0].numel() * each.element_size() for each in self.held)

    def takes(self, row: int, form: PerExampleGradient, tensors: Sequence[Tensor]) -> bool:
        """Whether a batch continues this run in the same form, with about as many positions."""
        if self.held is None or row != self.start + self.count:
            return False
        if type(form) is not type(self.kind) or _factors(form) is not _factors(self.kind):
            return False
        at = _position_dim(form)
        for tensor, held in zip(tensors, self.held, strict=True):
            here, there = list(tensor.shape[1:]), list(held.shape[1:])
            if at is not None:
                few, many = sorted([here.pop(at - 1), there.pop(at - 1)])
                if many > MOST_FILLED * few:
                    return False
            if here != there or tensor.dtype != held.dtype:
                return False
        return True

    def put(self, tensors: Sequence[Tensor], most: int) -> None:
        """Copy a batch's tensors after those before, into memory for `most` queries."""
        assert self.held is not None
        at = _position_dim(self.kind)
        rows = self.count + len(tensors[0])
        for number, tensor in enumerate(tensors):
            held = self.held[number]
            shape = list(held.shape)
            if at is not None:
                shape[at] = max(shape[at], tensor.shape[at])
            if len(held) < rows or shape != list(held.shape):
                held = held.new_empty(max(most, rows), *shape[1:])
                _copy(self.held[number][: self.count], held, at)
                self.held[number] = held
            _copy(tensor, held[self.count : rows], at)
        self.count = rows


def _copy(tensor: Tensor, out: Tensor, at: int | None) -> None:
    """Copy into the first rows, with zeros where `out` has more positions."""
    out = out[: len(tensor)]
    if at is None:
        out.copy_(tensor)
        return
    positions = tensor.shape[at]
    out.narrow(at, 0, positions).copy_(tensor)
    out.narrow(at, positions, out.shape[at] - positions).zero_()


def _position_dim(form: PerExampleGradient) -> int | None:
    match form:
        case OuterProduct() | Streamed() | SparseRows():
            return 1
        case Stacked():
            return 2
    return None


def _factors(form: PerExampleGradient) -> Tensor | None:
    """Those that all queries have in common."""
    return form.factors if isinstance(form, Streamed) else None


def _tensors(form: PerExampleGradient) -> tuple[Tensor, ...] | None:
    """Examples first; None for a form that is not joined."""
    match form:
        case Dense():
            return (form.dense(),)
        case OuterProduct():
            return form.kept_left, form.kept_right
        case Stacked():
            return form.left, form.right
        case Streamed():
            return form.inner.kept_left, form.inner.kept_right
        case SparseRows():
            return form.index, form.values
    return None


def _with_tensors(form: PerExampleGradient, tensors: Sequence[Tensor]) -> PerExampleGradient:
    match form:
        case Dense():
            return Dense(tensors[0])
        case OuterProduct():
            return OuterProduct(tensors[0], tensors[1])
        case Stacked():
            return Stacked(tensors[0], tensors[1])
        case Streamed():
            return replace(form, inner=OuterProduct(tensors[0], tensors[1]))
        case SparseRows():
            return SparseRows(tensors[0], tensors[1], form.size)
    raise TypeError(f"{type(form).__name__} is not joined; a bug in tracin")
