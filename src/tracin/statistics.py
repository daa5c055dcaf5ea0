"""Statistics that several parts of the package report."""

import torch
from torch import Tensor


def pearson(ours: Tensor, theirs: Tensor) -> Tensor:
    """Pearson's r over the first dimension; NaN where one of the two is constant.

    Args:
        ours: [values] or [values, columns].
        theirs: The same shape.

    Returns:
        A single number, or [columns].

    Example:
        >>> import torch
        >>> from tracin.statistics import pearson
        >>> f"{pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])):.3f}"
        '1.000'
    """
    ours, theirs = ours - ours.mean(0), theirs - theirs.mean(0)
    lengths = ours.norm(dim=0) * theirs.norm(dim=0)
    return (ours * theirs).sum(0) / torch.where(lengths > 0, lengths, torch.nan)


def ranks(values: Tensor) -> Tensor:
    """Each value's place within its column, from 1; equal values share the mean of their places.

    Args:
        values: [values, columns].

    Returns:
        [values, columns], float64.

    Example:
        >>> import torch
        >>> from tracin.statistics import ranks
        >>> ranks(torch.tensor([[5.0], [9.0], [5.0]])).T
        tensor([[1.5000, 3.0000, 1.5000]], dtype=torch.float64)
    """
    columns = []
    for column in values.T:
        _, at, counts = torch.unique(column, return_inverse=True, return_counts=True)
        ends = counts.cumsum(0).double()
        columns.append((ends - (counts - 1) / 2)[at])
    return torch.stack(columns, 1)
