"""How precise the numbers of a pass are, and how to keep them from being less than they look.

Float32 products may run in TF32, with 10 bits of mantissa: convolutions do by default on NVIDIA's
GPUs since Ampere, matrix products after `torch.set_float32_matmul_precision("high")`.
"""

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.process_wide import Setting, Undo
from tracin.torch_internals import (
    allow_tf32,
    allows_tf32,
    get_fp32_precision,
    graph_dtypes,
    set_fp32_precision,
)

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Precision:
    """How precise numbers are.

    Attributes:
        name: As in a sentence.
        tolerance: How far two computations of one gradient may be apart, relative to its length:
            in other batch sizes, by other kernels, in another order of sums.
    """

    name: str
    tolerance: float


FLOAT64 = Precision("float64", 1e-8)
FLOAT32 = Precision("float32", 1e-4)
TF32 = Precision("float32 with products in TF32", 0.02)
FLOAT16 = Precision("float16", 0.05)
BFLOAT16 = Precision("bfloat16", 0.05)
BFLOAT16_PRODUCTS = Precision("float32 with products in bfloat16", 0.05)
FLOAT8 = Precision("float8", 0.25)

_WITHOUT_FLOAT64 = ("mps",)

_EXACT_FIRST = (FLOAT64, FLOAT32, TF32, FLOAT16, BFLOAT16_PRODUCTS, BFLOAT16, FLOAT8)

# Torch's own names of what has a float32 precision, and of the defaults of these.
_OPERATORS = [(backend, op) for backend in ("cuda", "mkldnn") for op in ("matmul", "conv", "rnn")]
_DEFAULTS = [("generic", "all"), ("cuda", "all"), ("mkldnn", "all")]

_BY_DTYPE = {
    torch.float64: FLOAT64,
    torch.float32: FLOAT32,
    torch.float16: FLOAT16,
    torch.bfloat16: BFLOAT16,
}


def exact_matmuls() -> AbstractContextManager[None]:
    """Within, products of float32 numbers are float32's: no TF32, no bfloat16 in their place.

    Example:
        >>> torch.set_float32_matmul_precision("high")
        >>> with exact_matmuls():
        ...     torch.get_float32_matmul_precision()
        'highest'
        >>> torch.get_float32_matmul_precision()
        'high'
        >>> torch.set_float32_matmul_precision("highest")
    """
    return _EXACT_MATMULS()


def precision_of(dtype: torch.dtype) -> Precision:
    """The precision of one kind of floating point or complex numbers.

    Example:
        >>> precision_of(torch.complex64).name
        'float32'
    """
    real = dtype.to_real() if dtype.is_complex else dtype
    return _BY_DTYPE.get(real, FLOAT8)


def in_double(tensor: Tensor) -> Tensor:
    """In float64, where the tensor is or, if that device has none, on the CPU.

    Example:
        >>> in_double(torch.ones(1)).dtype
        torch.float64
    """
    return (tensor.cpu() if tensor.device.type in _WITHOUT_FLOAT64 else tensor).double()


def lowest_precision(losses: Tensor) -> Precision:
    """The lowest precision in what `losses` were computed from, autocast and float32 islands too.

    Where the graph holds float32, products are tried out on its device, so that TF32 is seen
    whatever turned it on: a flag, or an environment variable.

    Args:
        losses: With their graph: [examples].

    Example:
        >>> layer = torch.nn.Linear(2, 1).double()
        >>> lowest_precision(layer(torch.ones(3, 2).double())[:, 0]).name
        'float64'
        >>> lowest_precision(layer(torch.ones(3, 2).double())[:, 0].float().double()).name
        'float32'
    """
    return lowest(map(precision_of, _dtypes(losses)), losses.device)


def lowest(precisions: Iterable[Precision], device: torch.device) -> Precision:
    """The lowest of some precisions, where float32 is what its products are on `device`."""
    precision = max(precisions, key=_EXACT_FIRST.index)
    return precision_of_products(device) if precision is FLOAT32 else precision


def _dtypes(losses: Tensor) -> set[torch.dtype]:
    """The kinds of numbers in the graph of the losses."""
    dtypes = {losses.dtype}
    seen, nodes = set(), [losses.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        dtypes.update(graph_dtypes(node))
        nodes.extend(following for following, _ in node.next_functions)
    return dtypes


def precision_of_products(device: torch.device) -> Precision:
    """What products of float32 numbers keep on a device, as tried out just now."""
    # From 1 to 2 in numbers that take 20 bits; times one, plus zeros, they stay what they are.
    steps = torch.arange(_SIDE * _SIDE, dtype=torch.float32, device=device).view(_SIDE, _SIDE)
    numbers = 1 + steps * (2.0**-14 + 2.0**-20)
    identity = torch.eye(_SIDE, dtype=torch.float32, device=device)
    picture, kernels = numbers.view(1, _SIDE, 1, _SIDE), identity.view(_SIDE, _SIDE, 1, 1)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        gaps = [
            identity @ numbers - numbers,
            torch.bmm(identity[None], numbers[None])[0] - numbers,
            F.conv2d(picture, kernels).view(_SIDE, _SIDE) - numbers,
        ]
        error = float(torch.stack(gaps).abs().max())
    if error <= 2.0**-20:
        return FLOAT32
    return TF32 if error <= 2.0**-10 else BFLOAT16_PRODUCTS


_SIDE = 128  # tensor cores take matrices of this size


def _multiply_exactly(keep: Callable[[Undo], None]) -> None:
    # Torch has two generations of these settings. The older one cannot be read where the newer
    # was set to something else, and is then left alone: code that set the newer one uses that.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some releases of torch call the older one deprecated
        matmul = _readable(torch.get_float32_matmul_precision)
        convolution = _readable(allows_tf32)
        # Last to be set, and first to be taken back, is the older one: it writes into the newer.
        for backend, operator in _DEFAULTS:
            # An operator without a setting shows its default's: those go first.
            _set(backend, operator, "none", keep)
        for backend, operator in _OPERATORS:
            _set(backend, operator, "ieee", keep)
        if matmul is not None:
            keep(lambda: torch.set_float32_matmul_precision(matmul))
            torch.set_float32_matmul_precision("highest")
        if convolution is not None:
            keep(lambda: allow_tf32(convolution))
            allow_tf32(False)
        for backend, operator in _OPERATORS:
            set_fp32_precision(backend, operator, "ieee")


def _set(backend: str, operator: str, value: str, keep: Callable[[Undo], None]) -> None:
    before = get_fp32_precision(backend, operator)
    keep(lambda: set_fp32_precision(backend, operator, before))
    set_fp32_precision(backend, operator, value)


def _readable(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except RuntimeError:
        return None


_EXACT_MATMULS = Setting(_multiply_exactly)
