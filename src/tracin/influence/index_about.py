"""What an index is of: what must agree before its rows may meet other rows."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tracin.checkpoints import Checkpoint
from tracin.data import Examples
from tracin.data.batches import leaves
from tracin.sketches import Plan, Projection


def about_of(
    shapes: Mapping[str, list[int]], projection: Projection, plan: Plan, train: Examples
) -> dict[str, Any]:
    """The fields that a second build must share, as JSON.

    Args:
        shapes: Of the parameters that are traced, by name.
        projection: As it was asked for.
        plan: How gradients become rows.
        train: The training data; more rows may follow later.
    """
    return {
        "parameters": dict(shapes),
        "projection": projection_of(projection),
        "first example": example_fingerprint(train, 0),
        "plan": plan.to_json(),
    }


def projection_of(projection: Projection) -> dict[str, Any]:
    """A projection as JSON."""
    split = None if projection.split is None else dict(projection.split)
    return {"dim": projection.dim, "seed": projection.seed, "split": split}


def example_fingerprint(examples: Examples, position: int) -> str:
    """Equal for equal examples."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in leaves(examples.take([position])):
        digest.update(path.encode())
        is_read = isinstance(leaf, Tensor) and not leaf.is_meta
        digest.update(_bytes(leaf) if is_read else repr(leaf).encode())
    return digest.hexdigest()


def checkpoint_key(checkpoint: Checkpoint) -> str:
    """Equal for checkpoints with the same weights, bit for bit."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(checkpoint.weights().items()):
        digest.update(name.encode())
        digest.update(str(weight.dtype).encode())
        digest.update(_bytes(weight))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
