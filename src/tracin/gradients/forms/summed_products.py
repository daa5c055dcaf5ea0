"""Products of matrices in half precision, whose sums are float32's.

The product of two numbers in bfloat16 or float16 is exact in float32. A GPU's tensor cores add such
products up in float32 many times faster than float32 numbers are multiplied without TF32.
"""

import torch
from torch import Tensor

from tracin.torch_internals import HALF_PRODUCTS_ON

HALF = (torch.bfloat16, torch.float16)


def full(tensor: Tensor) -> Tensor:
    """At least single precision, in which products of gradients are summed."""
    return tensor.float() if tensor.dtype in HALF else tensor


def multiplied(one: Tensor, other: Tensor) -> Tensor:
    """The product of two matrices, or of two stacks of as many, summed in at least float32.

    Args:
        one: [.., rows, inner], with at most one dimension before the rows.
        other: [.., inner, columns].

    Example:
        >>> ones = torch.ones(2, 512, dtype=torch.bfloat16)
        >>> multiplied(ones, 1.0039 * ones.mT).dtype
        torch.float32
    """
    if one.dtype in HALF and one.dtype == other.dtype and one.device.type in HALF_PRODUCTS_ON:
        product = torch.bmm if one.ndim == 3 else torch.mm
        return product(one.detach(), other.detach(), out_dtype=torch.float32)
    one, other = full(one), full(other)
    if one.dtype != other.dtype:
        dtype = torch.promote_types(one.dtype, other.dtype)
        one, other = one.to(dtype), other.to(dtype)
    return one @ other
