"""Turns a batch's per-example gradients into rows of numbers, parameter by parameter."""

from typing import final

import torch
from torch import Tensor

from tracin.errors import IndexingError
from tracin.gradients.forms import (
    ConvFactors,
    Dense,
    OuterProduct,
    PerExampleGradient,
    SparseRows,
    SumOf,
    checked_squared_norm,
)
from tracin.gradients.forms.form import blocks, by_blocks, squared_lengths
from tracin.late_checks import LateChecks
from tracin.sketches.columns import Dot, Product
from tracin.sketches.hashing import CountSketch, FoldedCountSketch, folded
from tracin.sketches.kinds import BiasOf, Convolved, Factored, Hashed, TwoSided, Written
from tracin.sketches.plan import Plan
from tracin.sketches.random_numbers import key, signs

# Numbers per block of written-out gradients, but at least `_MIN_EXAMPLES` even of a large layer,
# since each piece of a row is one call whatever the number of rows.
_BLOCK = 1 << 20
_MIN_EXAMPLES = 16

# Gradients with fewer than `_NARROW` columns are first folded to at least `_FIRST_WIDTH`, since few
# columns mean many short pieces. The second fold adds at most an eighth to the variance.
_NARROW, _FIRST_WIDTH = 512, 4096


@final
class Sketcher:
    """Makes the rows of one batch at a time: `begin`, `add` for each form, `rows`.

    `Gradients.visit` takes `add` as its callback. Training examples and queries need sketchers of
    the same plan and draw, or their scores mean nothing.

    Args:
        plan: How each parameter's gradients become numbers.
        device: The device of the gradients.
        dtype: The dtype to add up in.
        draw: The number of the checkpoint. Each has its own random numbers, so that the errors of
            several checkpoints do not add up.
        has_norms: Whether to compute squared norms, too. They take half the time of a wide layer
            with many positions.

    Example:
        >>> from tracin.gradients.forms import Dense
        >>> from tracin.sketches import Projection, planned
        >>> forms = {"scale": Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))}
        >>> sketcher = Sketcher(planned(Projection(dim=8), forms, {"scale": 2}))
        >>> sketcher.begin(2)
        >>> sketcher.add("scale", forms["scale"], 0)
        >>> sketcher.rows()
        tensor([[1., 2.],
                [3., 4.]])
        >>> sketcher.squared_norms()
        tensor([[ 5.],
                [25.]])
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        draw: int = 0,
        *,
        has_norms: bool = True,
    ) -> None:
        self.plan = plan
        self._draw = draw
        self._has_norms = has_norms
        self._like = torch.zeros(0, dtype=dtype, device=device)
        self._folded: dict[str, FoldedCountSketch] = {}
        self._short: dict[tuple[str, str], CountSketch] = {}
        self._sides: dict[tuple[str, str], Tensor] = {}
        self.begin(0)

    def begin(
        self, examples: int, rows: Tensor | None = None, checks: LateChecks | None = None
    ) -> None:
        """Begin a batch, and forget the last one.

        Args:
            examples: The number of examples.
            rows: [examples, width]: memory for the rows, used if it has the sketcher's device and
                dtype. None allocates it.
            checks: What takes note of gradients that have to be looked at again; None looks at
                once.
        """
        self._checks = checks
        like = self._like
        if rows is None or rows.device != like.device or rows.dtype != like.dtype:
            self._rows = like.new_zeros(examples, self.plan.width)
        else:
            self._rows = rows.zero_()
        self._norms = self._like.new_zeros(examples, self.plan.columns.groups)
        self._sums: dict[int, Tensor] = {}
        self._spectra: dict[int, Tensor] = {}
        self._single: dict[tuple[str, int], tuple[str, Tensor]] = {}

    @torch.no_grad()
    def add(self, name: str, form: PerExampleGradient, row: int) -> None:
        """Add a parameter's gradients.

        Args:
            name: The parameter.
            form: The gradients of some examples of the batch.
            row: The position of the first of these in the batch.

        Raises:
            IndexingError: The plan has no such parameter, or one of another kind.
        """
        kind = self.plan.kinds.get(name)
        if kind is None or form.numbers != self.plan.numbers[name]:
            raise IndexingError(
                f"The gradient of parameter '{name}' has {form.numbers} numbers per example, but "
                f"the plan has {self.plan.numbers.get(name, 'no such parameter')}. Use the "
                "parameters that the plan was made for."
            )
        at = slice(row, row + form.examples)
        match kind:
            case Written(start):
                norms = self._write(form, self._rows[at, start : start + form.numbers])
            case Hashed(block):
                norms = self._hash(name, form, self._sums_of(block)[at])
            case TwoSided(block):
                norms = self._project(name, kind, form, self._sums_of(block)[at])
            case Convolved(block):
                norms = self._convolve(name, kind, form, self._spectra_of(block)[at])
            case Factored(block):
                norms = self._factor(name, kind, form, at)
            case BiasOf(weight):
                left = form.dense()
                self._match(weight, row, name, left)
                norms = squared_lengths(left)
        self._norms[at, self.plan.groups[name]] += norms.to(self._norms.dtype)

    def forget(self, name: str) -> None:
        """Let a parameter's random numbers go; they are drawn again when it is added again."""
        self._folded.pop(name, None)
        for side in ("left", "right"):
            self._short.pop((name, side), None)
            self._sides.pop((name, side), None)

    @torch.no_grad()
    def rows(self) -> Tensor:
        """Finish the batch. Call `begin` before the next one.

        Returns:
            [examples, width], float32.

        Raises:
            IndexingError: The gradient of a layer's bias came without its weight's, or vice versa.
        """
        for name, _ in self._single.values():
            raise IndexingError(
                f"The plan needs the gradients of a layer's weight and bias, but only that of "
                f"'{name}' came. Use the same loss and the same parameters for all rows."
            )
        for number, sums in self._sums.items():
            self._columns(number).add_(self._fold(number, sums))
        for number, spectrum in self._spectra.items():
            columns = self._columns(number)
            columns.add_(torch.fft.irfft(spectrum, n=columns.shape[1]))
        self._sums, self._spectra = {}, {}
        return self._rows.float()

    def squared_norms(self) -> Tensor:
        """The exact squared norm of each example's gradient, by group: [examples, groups].

        Raises:
            IndexingError: The sketcher was made without them.
        """
        if not self._has_norms:
            raise IndexingError("This sketcher computes no squared norms: it has has_norms=False.")
        return self._norms.float()

    def _write(self, form: PerExampleGradient, into: Tensor) -> Tensor:
        dense = form.dense()
        into.add_(dense)
        return squared_lengths(dense)

    def _hash(self, name: str, form: PerExampleGradient, into: Tensor) -> Tensor:
        sketch = self._folded_sketch(name, form.numbers, into.shape[1] // 2)
        return _hashed(sketch, form, into, self._checks)

    def _project(self, name: str, kind: TwoSided, form: PerExampleGradient, into: Tensor) -> Tensor:
        out, inner = kind.shape
        left, right = (
            self._side(name, "left", out, kind.left),
            self._side(name, "right", inner, kind.right),
        )
        sketch = self._folded_sketch(name, kind.left * kind.right, into.shape[1] // 2)
        for each in form.forms if isinstance(form, SumOf) else (form,):
            _project(each, (out, inner), left, right, sketch, into)
        return self._squared_norm(form)

    def _convolve(
        self, name: str, kind: Convolved, form: PerExampleGradient, into: Tensor
    ) -> Tensor:
        width = self._width(kind.block)
        if not isinstance(form, OuterProduct):
            raise _unlike(name, "outer products", form)
        out, inner = kind.shape
        left = self._count_sketch(name, "left", out, width, is_mixed=True)
        right = self._count_sketch(name, "right", inner, width, is_mixed=True)
        for start, stop in blocks(form.examples, form.positions * 4 * width, form.device):
            part = form.part(start, stop)
            spectrum = torch.fft.rfft(left(part.left.flatten(0, 1)))
            spectrum *= torch.fft.rfft(right(part.right.flatten(0, 1)))
            into[start:stop] += spectrum.view(part.examples, part.positions, -1).sum(1)
        return self._squared_norm(form)

    def _factor(self, name: str, kind: Factored, form: PerExampleGradient, at: slice) -> Tensor:
        if not isinstance(form, OuterProduct) or form.positions != 1:
            raise _unlike(name, "one position per example", form)
        block = self.plan.columns.blocks[kind.block]
        if not isinstance(block, Product):
            raise _wrong_block(name)
        left, right = form.left[:, 0], form.right[:, 0]
        for side, what, factor in ((block.left, "left", left), (block.right, "right", right)):
            sketch = self._count_sketch(name, what, side.numbers, side.width)
            sketch.put(factor, self._rows[at, side.start : side.stop])
        if block.has_bias:
            self._match(name, at.start, name, left)
        return squared_lengths(left) * squared_lengths(right)

    def _squared_norm(self, form: PerExampleGradient) -> Tensor:
        if not self._has_norms:
            return self._like.new_zeros(form.examples)
        return checked_squared_norm(form, self._checks)

    def _match(self, weight: str, row: int, name: str, left: Tensor) -> None:
        """Check that a bias's gradient is its weight's left factor."""
        other = self._single.pop((weight, row), None)
        if other is None:
            self._single[weight, row] = name, left
        elif not self._is_same(left, other[1]):
            raise IndexingError(
                f"The gradients of '{name}' and '{other[0]}' were those of one layer's weight and "
                "bias when the plan was made, but are not now. Make the plan from a batch in which "
                "the model computes what it does in all others."
            )

    def _is_same(self, one: Tensor, other: Tensor) -> bool:
        """Whether two tensors hold the same; taken to be so where the checks take note of it."""
        if one.shape != other.shape:
            return False
        if one.data_ptr() == other.data_ptr():
            return True
        if self._checks is None:
            return torch.equal(one, other)
        self._checks.note((one != other).any())
        return True

    def _sums_of(self, block: int) -> Tensor:
        if block not in self._sums:
            width = first_width(self._width(block))
            self._sums[block] = self._like.new_zeros(len(self._rows), 2 * width)
        return self._sums[block]

    def _spectra_of(self, block: int) -> Tensor:
        if block not in self._spectra:
            zeros = self._like.new_zeros(len(self._rows), self._width(block) // 2 + 1)
            self._spectra[block] = torch.complex(zeros, zeros)
        return self._spectra[block]

    def _fold(self, number: int, sums: Tensor) -> Tensor:
        sums, width = folded(sums), self._width(number)
        if sums.shape[1] == width:
            return sums
        out = sums.new_zeros(len(sums), 2 * width)
        self._folded_sketch(f"block {number}", sums.shape[1], width).add(sums, out)
        return folded(out)

    def _columns(self, number: int) -> Tensor:
        block = self.plan.columns.blocks[number]
        if not isinstance(block, Dot):
            raise _wrong_block(f"block {number}")
        return self._rows[:, block.side.start : block.side.stop]

    def _width(self, number: int) -> int:
        return self._columns(number).shape[1]

    def _stream(self, *path: str | int) -> int:
        return key(self.plan.seed, self._draw, *path)

    def _folded_sketch(self, name: str, numbers: int, width: int) -> FoldedCountSketch:
        if name not in self._folded:
            stream = self._stream(name, "folds")
            self._folded[name] = FoldedCountSketch(stream, numbers, width, self._like)
        return self._folded[name]

    def _count_sketch(
        self, name: str, side: str, numbers: int, width: int, *, is_mixed: bool = False
    ) -> CountSketch:
        if (name, side) not in self._short:
            stream = self._stream(name, side)
            self._short[name, side] = CountSketch(
                stream, numbers, width, self._like, is_mixed=is_mixed
            )
        return self._short[name, side]

    def _side(self, name: str, side: str, numbers: int, kept: int) -> Tensor | None:
        """A random matrix for one side, [numbers, kept]; None where all of it is kept."""
        if kept >= numbers:
            return None
        if (name, side) not in self._sides:
            stream = self._stream(name, side)
            matrix = torch.from_numpy(signs(stream, numbers * kept)).to(self._like)
            self._sides[name, side] = matrix.view(numbers, kept).div_(kept**0.5)
        return self._sides[name, side]


def first_width(width: int) -> int:
    """The number of columns of the first fold, before the second one to `width`."""
    return width if width >= _NARROW else width * -(-_FIRST_WIDTH // width)


def _hashed(
    sketch: FoldedCountSketch, form: PerExampleGradient, into: Tensor, checks: LateChecks | None
) -> Tensor:
    """Hash a form, and return its squared norms, so that it need not be written out again."""
    if isinstance(form, SparseRows):
        sketch.add_rows(form, into)
        return checked_squared_norm(form, checks)
    if isinstance(form, SumOf):
        for each in form.forms:
            _hashed(sketch, each, into, checks)
        return checked_squared_norm(form, checks)

    def one(start: int, stop: int) -> Tensor:
        dense = form.part(start, stop).dense()
        sketch.add(dense, into[start:stop])
        return squared_lengths(dense)

    most = max(_BLOCK, _MIN_EXAMPLES * form.written)
    return by_blocks(form.examples, form.written, form.device, one, most)


def _project(
    form: PerExampleGradient,
    shape: tuple[int, int],
    left: Tensor | None,
    right: Tensor | None,
    sketch: FoldedCountSketch,
    into: Tensor,
) -> None:
    sides = form.numbers if isinstance(form, Dense | ConvFactors) else _factors(form)
    for start, stop in blocks(form.examples, sides, form.device):
        part = form.part(start, stop)
        if isinstance(part, OuterProduct):
            lefts = part.left.to(into.dtype)
            lefts = lefts if left is None else lefts @ left
        elif isinstance(part, SparseRows):
            table = torch.eye(shape[0]).to(into) if left is None else left
            lefts = table[part.index]
        else:
            matrices = part.dense().view(-1, *shape)
            matrices = matrices if left is None else left.mT @ matrices.to(left.dtype)
            matrices = matrices if right is None else matrices.to(right.dtype) @ right
            sketch.add(matrices.flatten(1), into[start:stop])
            continue
        rights = part.right if isinstance(part, OuterProduct) else part.values
        rights = rights if right is None else rights.to(right.dtype) @ right
        sketch.add(OuterProduct(lefts, rights.to(lefts.dtype)).dense(), into[start:stop])


def _factors(form: PerExampleGradient) -> int:
    if isinstance(form, OuterProduct):
        return form.positions * (form.left.shape[2] + form.right.shape[2])
    if isinstance(form, SparseRows):
        return form.index.shape[1] * form.values.shape[2]
    return form.written


def _unlike(name: str, promised: str, form: PerExampleGradient) -> IndexingError:
    came = type(form).__name__
    if isinstance(form, OuterProduct):
        came = f"{form.positions} positions"
    return IndexingError(
        f"The gradient of parameter '{name}' had {promised} when the plan was made, but now has "
        f"{came}. Make the plan from a batch like this one."
    )


def _wrong_block(name: str) -> IndexingError:
    return IndexingError(
        f"The plan puts '{name}' into a block of columns of another kind: the file was changed. "
        "Build the index again."
    )
