"""What an index is of: what must agree before its rows may meet other rows."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tracin.checkpoints import Checkpoint
from tracin.sketches import Plan, Projection


def about_of(shapes: Mapping[str, list[int]], projection: Projection, plan: Plan) -> dict[str, Any]:
    """The fields that a second build must share, as JSON.

    Args:
        shapes: Of the parameters that are traced, by name.
        projection: As it was asked for.
        plan: How gradients become rows.
    """
    return {
        "parameters": dict(shapes),
        "projection": projection_of(projection),
        "plan": plan.to_json(),
    }


def projection_of(projection: Projection) -> dict[str, Any]:
    """A projection as JSON."""
    split = None if projection.split is None else dict(projection.split)
    return {"dim": projection.dim, "seed": projection.seed, "split": split}


def draw_of(key: str) -> int:
    """The number of a checkpoint's random numbers: the same whenever its weights come."""
    return int(key[:12], 16)


def checkpoint_key(checkpoint: Checkpoint) -> str:
    """Equal for checkpoints with the same weights, bit for bit."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(checkpoint.weights().items()):
        digest.update(name.encode())
        digest.update(str(weight.dtype).encode())
        digest.update(bytes_of(weight))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """A tensor's numbers as they lie in memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
