"""How the workers of one machine share its cores and its GPUs."""

import os
import sys
from collections.abc import Sequence


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Make torch compute with `count` threads, whether it is loaded yet or not."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, by their names in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in named.split(",")][:count]


def gpu_of(worker: int, gpus: Sequence[str]) -> str | None:
    """The only GPU that a worker may see; None where there is no choice.

    Example:
        >>> [gpu_of(worker, ["0", "1"]) for worker in range(4)]
        ['0', '1', '0', '1']
        >>> gpu_of(3, ["0"]) is None
        True
    """
    return gpus[worker % len(gpus)] if len(gpus) > 1 else None
