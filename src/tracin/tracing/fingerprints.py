"""Short texts that are equal for equal ids, queries or weights, to know them again by."""

import hashlib

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
            is_read = isinstance(leaf, Tensor) and not leaf.is_meta
            digest.update(_bytes(leaf) if is_read else repr(type(leaf)).encode())
    return digest.hexdigest()


def weights_fingerprint(model: Module) -> str:
    """Equal for models with the same weights, bit for bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(_bytes(parameter.detach()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
