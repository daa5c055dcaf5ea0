"""Complex gradients as real ones: twice as many numbers, real and imaginary parts in turn.

The loss is real, so real and imaginary parts are parameters each, and products of gradients are
those of their real numbers. Everything that takes gradients knows real numbers alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tracin.gradients.forms.computed import Computed
from tracin.gradients.forms.dense import Dense
from tracin.gradients.forms.form import PerExampleGradient
from tracin.gradients.forms.outer import OuterProduct
from tracin.gradients.forms.patches import ConvFactors
from tracin.gradients.forms.rows import SparseRows
from tracin.gradients.forms.stacked import Stacked
from tracin.gradients.forms.total import SumOf


def real_shape(parameter: Tensor) -> torch.Size:
    """The shape of a parameter's gradient in real numbers."""
    shape = parameter.shape
    return torch.Size([*shape, 2]) if parameter.is_complex() else shape


def is_complex(form: PerExampleGradient) -> bool:
    """Whether gradients are held in complex numbers."""
    match form:
        case SumOf():
            return any(is_complex(each) for each in form.forms)
        case Dense() | SparseRows():
            return form.values.is_complex()
        case OuterProduct() | Stacked():
            return form.left.is_complex() or form.right.is_complex()
        case ConvFactors():
            return form.inputs.is_complex() or form.deltas.is_complex()
    return False


def in_real_numbers(form: PerExampleGradient) -> PerExampleGradient:
    """The gradients of a complex parameter as `torch.view_as_real` orders them: 2 x numbers."""
    match form:
        case SumOf():
            return SumOf(tuple(in_real_numbers(each) for each in form.forms))
        case Dense():
            return Dense(_interleaved(form.dense()))
        case SparseRows():
            return SparseRows(form.index, _interleaved(form.values), form.size)
        case OuterProduct():
            return OuterProduct(*_both_parts(form.left, form.right))
        case Stacked():
            return Stacked(*_both_parts(form.left, form.right))
    return _written(form, 2 * form.numbers, _interleaved)


def real_part(form: PerExampleGradient) -> PerExampleGradient:
    """The gradients of a real parameter that met complex numbers."""
    match form:
        case SumOf():
            return SumOf(tuple(real_part(each) for each in form.forms))
        case Dense():
            return Dense(_real(form.dense()))
        case SparseRows():
            return SparseRows(form.index, _real(form.values), form.size)
        case OuterProduct():
            return OuterProduct(*_real_products(form.left, form.right))
        case Stacked():
            return Stacked(*_real_products(form.left, form.right))
    return _written(form, form.numbers, _real)


def _both_parts(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """L r = Re l (Re r, Im r) + Im l (-Im r, Re r): two positions for each."""
    left, right = torch.view_as_real(_complex(left)), _complex(right)
    turned = torch.cat([_interleaved(right), _interleaved(1j * right)], -2)
    return torch.cat([left[..., 0], left[..., 1]], -2), turned


def _real_products(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Re(l r) = Re l Re r - Im l Im r; one position is enough where one side is real."""
    if not left.is_complex() or not right.is_complex():
        return _real(left), _real(right)
    lefts = torch.cat([left.real, left.imag], -2)
    return lefts, torch.cat([right.real, -right.imag], -2)


def _written(
    form: PerExampleGradient, numbers: int, change: Callable[[Tensor], Tensor]
) -> Computed:
    def make(start: int, stop: int) -> Tensor:
        return change(form.part(start, stop).dense())

    return Computed(make, form.examples, numbers, 2 * form.written, form.device)


def _interleaved(values: Tensor) -> Tensor:
    return torch.view_as_real(_complex(values)).flatten(-2)


def _complex(values: Tensor) -> Tensor:
    # view_as_real refuses the lazy conjugates that autograd gives.
    return values.resolve_conj() if values.is_complex() else values.to(values.dtype.to_complex())


def _real(values: Tensor) -> Tensor:
    return values.real if values.is_complex() else values
