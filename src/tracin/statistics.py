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
