"""Random directions, whose products with two gradients tell whether these are one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tracin.gradients.forms import (
    Dense,
    OuterProduct,
    PerExampleGradient,
    SparseRows,
    SumOf,
    real_shape,
)

# The largest of so many products is below a tenth of its usual size once in 10^5 differences.
PROBES = 8


def probes_for(
    forms: Sequence[PerExampleGradient], parameter: Tensor, generator: torch.Generator
) -> PerExampleGradient:
    """Normally distributed directions for one parameter, in a form that suits its gradients.

    Where these are factored, a direction is the product of two vectors, so that it takes no more
    memory than they do. The mean square of its product with a gradient is the gradient's squared
    length in any case.

    Args:
        forms: Gradients of the parameter; none where no example has any.
        parameter: The parameter.
        generator: Of the random numbers.
    """
    shape = next((each for each in map(_matrix, forms) if each is not None), None)
    if shape is None:
        like = forms[0].part(0, 1).dense() if forms else parameter.real
        numbers = forms[0].numbers if forms else real_shape(parameter).numel()
        return Dense(_normal((PROBES, numbers), like, generator))
    out, inner = shape
    left, right = _sides(forms)
    return OuterProduct(
        _normal((PROBES, 1, out), left, generator), _normal((PROBES, 1, inner), right, generator)
    )


def _matrix(form: PerExampleGradient) -> tuple[int, int] | None:
    """The shape of the matrix that a form has factors or rows of; None if it has neither."""
    match form:
        case OuterProduct():
            return form.shape
        case SparseRows():
            return form.size, form.values.shape[2]
        case SumOf():
            return next((each for each in map(_matrix, form.forms) if each is not None), None)
    return None


def _sides(forms: Sequence[PerExampleGradient]) -> tuple[Tensor, Tensor]:
    """What the factors of a direction are to be alike, in kind and place."""
    for form in forms:
        match form:
            case OuterProduct():
                return form.kept_left, form.kept_right
            case SparseRows():
                return form.values, form.values
            case SumOf():
                return _sides(form.forms)
    raise RuntimeError("forms without factors; a bug in tracin")


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(like.device, like.dtype)
