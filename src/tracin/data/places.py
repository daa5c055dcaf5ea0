"""Where the examples of a batch are in a tensor of all."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def places(positions: Sequence[int], start: int = 0) -> slice | Tensor:
    """What picks the rows of these positions: a slice where they follow each other.

    Args:
        positions: The examples' positions in the data, no two alike.
        start: The position that is row 0.

    Example:
        >>> places(range(4, 7), start=4), places([7, 5])
        (slice(0, 3, None), tensor([7, 5]))
    """
    if isinstance(positions, range) and positions.step == 1:
        return slice(positions.start - start, positions.stop - start)
    return torch.as_tensor(list(positions), dtype=torch.long) - start


def in_data_order(batches: Iterable[tuple[Sequence[int], Tensor]]) -> Tensor:
    """The rows of all batches, in the order of their positions: [examples, ...].

    Args:
        batches: The positions of each batch's examples, and a row for each.

    Example:
        >>> in_data_order([([2, 0], torch.tensor([20, 0])), ([1], torch.tensor([10]))])
        tensor([ 0, 10, 20])
    """
    read, rows = zip(*batches, strict=True)
    order = torch.tensor([position for positions in read for position in positions])
    return torch.cat(rows)[torch.argsort(order)]
