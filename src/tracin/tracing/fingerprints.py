"""Short texts that are equal for equal ids, queries or weights, to know them again by."""

from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Examples
from tracin.data.batches import leaves
from tracin.files import bytes_of, fingerprint, ids_fingerprint


def query_fingerprint(queries: Examples) -> str:
    """Equal for equal queries with equal ids."""
    leaves_of = (pair for _, batch in queries.batches(256) for pair in leaves(batch))
    content = (piece for path, leaf in leaves_of for piece in (path, _content(leaf)))
    return fingerprint(chain([ids_fingerprint(queries.ids)], content))


def weights_fingerprint(model: Module) -> str:
    """Equal for models with the same weights, bit for bit."""
    return fingerprint(
        piece
        for name, parameter in model.named_parameters()
        for piece in (name, bytes_of(parameter))
    )


def _content(leaf: Any) -> bytes | memoryview:
    """What tells a leaf of a batch from another: its numbers or texts, else its class alone."""
    if isinstance(leaf, Tensor) and not leaf.is_meta and leaf.layout == torch.strided:
        return bytes_of(leaf)
    if isinstance(leaf, np.ndarray) and leaf.dtype != object:
        return f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes()
    if isinstance(leaf, str | bytes | int | float | list | tuple):
        return repr(leaf).encode()
    return repr(type(leaf)).encode()
