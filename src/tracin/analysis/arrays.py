"""Arrays, lists and tensors of any origin as tensors on the CPU."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def cpu_tensor(given: Any) -> Tensor:
    """A tensor without its graph, or a copy of an array or list as one; on the CPU.

    Raises:
        TypeError: It holds something else than numbers.
        ValueError: Its rows have different lengths.
    """
    if isinstance(given, Tensor):
        return given.detach().cpu()
    # A copy: torch warns of arrays that may not be written to, such as a pandas column's.
    return torch.from_numpy(np.array(given))
