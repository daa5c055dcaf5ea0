"""Which GPU a worker sees."""

import os
from collections.abc import Sequence


def visible_gpus() -> list[str]:
    """The names, as CUDA_VISIBLE_DEVICES has them, of the GPUs that this process sees."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in named.split(",")][:count]


def gpu_of(worker: int, gpus: Sequence[str]) -> str | None:
    """The only GPU that a worker is to see; None where there is nothing to choose.

    Example:
        >>> [gpu_of(worker, ["0", "1"]) for worker in range(4)]
        ['0', '1', '0', '1']
        >>> gpu_of(3, ["0"]) is None
        True
    """
    return gpus[worker % len(gpus)] if len(gpus) > 1 else None
