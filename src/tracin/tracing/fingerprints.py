"""Short texts that are equal for equal ids, queries or weights, to know them again by."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Examples
from tracin.data.batches import leaves


def ids_fingerprint(ids: np.ndarray) -> str:
    """Equal for equal ids in the same order."""
    content = "\n".join(map(str, ids.tolist())).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def query_fingerprint(queries: Examples) -> str:
    """Equal for equal queries with equal ids."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(ids_fingerprint(queries.ids).encode())
    for _, batch in queries.batches(256):
        for path, leaf in leaves(batch):
            digest.update(path.encode())
            digest.update(_content(leaf))
    return digest.hexdigest()


def weights_fingerprint(model: Module) -> str:
    """Equal for models with the same weights, bit for bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(_bytes(parameter.detach()))
    return digest.hexdigest()


def _content(leaf: Any) -> bytes:
    """What tells a leaf of a batch from another: its numbers or texts, else its class alone."""
    if isinstance(leaf, Tensor) and not leaf.is_meta and leaf.layout == torch.strided:
        return _bytes(leaf)
    if isinstance(leaf, np.ndarray) and leaf.dtype != object:
        return f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes()
    if isinstance(leaf, str | bytes | int | float | list | tuple):
        return repr(leaf).encode()
    return repr(type(leaf)).encode()


def _bytes(tensor: Tensor) -> bytes:
    held = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return held.reshape(-1).view(torch.uint8).numpy().tobytes()  # also where there are no dims
