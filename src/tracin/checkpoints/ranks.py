"""Which process of a parallel training writes: the first one."""

import os

import torch.distributed


def is_first_rank() -> bool:
    """Whether this is the only process of a training, or the first of several.

    Asked of torch.distributed where it is initialised, else of the environment variable RANK, as
    torchrun sets it.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("RANK", "0") in ("", "0")
