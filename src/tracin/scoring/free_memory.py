"""How much memory there is for what a question holds from one batch to the next."""

import os
from pathlib import Path

import torch

# Of the free memory: the rest is for the passes, and for whatever else runs.
SHARE = 0.5

# Where a system does not say what is free.
UNKNOWN = 4 << 30

_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def room(device: torch.device) -> int:
    """Bytes on a device that may be held through a pass, about."""
    return int(SHARE * free_memory(device))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device: on a CPU, of the machine or of the group that runs this.

    Example:
        >>> free_memory(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        # What torch keeps for tensors to come is free as well.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return min(_of_machine(), _of_group())


def _of_machine() -> int:
    try:
        lines = _MEMORY.read_text().splitlines()
        found = {line.split(":")[0]: line.split()[1] for line in lines}
        return 1024 * int(found["MemAvailable"])
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def _of_group() -> int:
    """What a container's limit leaves; no limit, as good as any, where there is none."""
    try:
        most = (_GROUP / "memory.max").read_text().strip()
        if most == "max":
            return 1 << 62
        statistics = (_GROUP / "memory.stat").read_text().split()
        # Files in the cache are let go of when memory is needed.
        cache = int(statistics[statistics.index("inactive_file") + 1])
        used = int((_GROUP / "memory.current").read_text()) - cache
        return max(0, int(most) - used)
    except (OSError, ValueError, IndexError):
        return 1 << 62
