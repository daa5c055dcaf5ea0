"""Wrong labels of the kind people really give, planted to see whether they are found."""

import torch
from torch import Generator, Tensor

from tracin.errors import DataError, LabelError, NonFiniteError, QueryError


def flip_labels(
    logits: Tensor, labels: Tensor, fraction: float = 0.1, *, seed: int | Generator
) -> tuple[Tensor, Tensor]:
    """Give a random part of the examples their highest scoring wrong label (paper, section 4.1).

    Such errors are harder to find than labels drawn at random: they are the ones that a trained
    model itself finds most plausible.

    Args:
        logits: [examples, classes], or probabilities: scores of a model trained on right labels.
        labels: [examples], the right classes; stays as it is.
        fraction: The share of examples to give a wrong label, rounded to whole examples.
        seed: A number, or a CPU generator, which decides which examples.

    Returns:
        The new labels, [examples], and a mask of what was changed, bool [examples], both on the
        device of `labels`.

    Raises:
        DataError: The shapes do not fit together, or there is one class only.
        LabelError: A label is not a whole number from 0 to classes - 1.
        NonFiniteError: A score is NaN or infinite.
        QueryError: The fraction lies outside 0 to 1.

    Example:
        >>> import torch
        >>> from tracin.analysis import flip_labels
        >>> logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
        >>> flip_labels(logits, torch.tensor([0, 2]), fraction=1.0, seed=0)
        (tensor([1, 1]), tensor([True, True]))
    """
    _check(logits, labels, fraction)
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    count = round(fraction * len(labels))
    chosen = torch.randperm(len(labels), generator=generator)[:count].to(labels.device)
    is_flipped = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    is_flipped[chosen] = True
    scores = logits.detach().to(labels.device)
    is_given = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels.long()[:, None], True)
    best_wrong = scores.masked_fill(is_given, -torch.inf).argmax(1).to(labels.dtype)
    return torch.where(is_flipped, best_wrong, labels), is_flipped


def _check(logits: Tensor, labels: Tensor, fraction: float) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.shape[1] < 2:
        raise DataError(
            "Scores [examples, classes] of at least two classes and labels [examples] are needed; "
            f"came scores {list(logits.shape)} and labels {list(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise LabelError(f"Labels are whole numbers, one class each; {labels.dtype} came.")
    classes = logits.shape[1]
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if len(outside):
        example = int(outside[0])
        raise LabelError(
            f"Labels lie from 0 to {classes - 1}, but example {example} has {int(labels[example])}."
        )
    broken = (~logits.isfinite()).any(1).nonzero()
    if len(broken):
        raise NonFiniteError(
            f"The scores of example {int(broken[0])} are not all finite, so its highest scoring "
            "wrong label is unknown."
        )
    if not 0 <= fraction <= 1:
        raise QueryError(f"fraction is a share from 0 to 1; {fraction!r} was given.")
