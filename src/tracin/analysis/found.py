"""How many known wrong labels a ranking brings to light, by how much of it is inspected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracin.errors import DataError, NonFiniteError, QueryError


@dataclass(frozen=True, eq=False)
class FoundCurve:
    """What inspecting a ranking from its top finds (paper, section 4.1).

    Equal scores have no order, so every figure is its mean over all orders of the ties: the same
    on every machine, and 0.5 of AUROC for scores that are all the same.

    Attributes:
        found: The share of wrong examples found, by the share of examples inspected.
        curve: [examples + 1]; `curve[n]` is the share found after inspecting n examples.
        area: Area under `curve`, both axes from 0 to 1. Random ranking: 0.5. Perfect ranking: 1
            minus half the share of wrong examples.
        auroc: How often a wrong example stands above a right one.
        average_precision: The mean, over wrong examples, of the share of wrong ones among those
            inspected up to it.
    """

    found: Mapping[float, float]
    curve: Tensor
    area: float
    auroc: float
    average_precision: float


def found_fraction(
    scores: Tensor, is_wrong: Tensor, at: Sequence[float] = (0.05, 0.1, 0.2, 0.3)
) -> FoundCurve:
    """Inspect examples by decreasing score, and count the wrong ones found on the way.

    Args:
        scores: [examples]; high is suspect.
        is_wrong: [examples], bool: the truth, known where the errors were planted.
        at: Shares of the examples to inspect, above 0 and up to 1. Between two whole numbers of
            examples the curve is straight.

    Raises:
        DataError: The shapes differ, or not both wrong and right examples are there.
        NonFiniteError: A score is NaN, which has no rank.
        QueryError: A share outside 0 to 1.

    Example:
        >>> import torch
        >>> from tracin.analysis import found_fraction
        >>> scores = torch.tensor([0.1, 0.9, 0.3, 0.2])
        >>> is_wrong = torch.tensor([False, True, False, True])
        >>> found_fraction(scores, is_wrong, at=[0.25, 0.5]).found
        {0.25: 0.5, 0.5: 0.5}
    """
    scores, is_wrong = _checked(scores, is_wrong)
    outside = [share for share in at if not 0 < share <= 1]
    if outside:
        raise QueryError(
            f"at holds shares of the examples, above 0 and up to 1; {outside[0]!r} was given. "
            "Write 20 % as 0.2."
        )
    examples, wrong = len(scores), int(is_wrong.sum())
    size, hits = _ties(scores, is_wrong)
    end, found_by_end = size.cumsum(0), hits.cumsum(0)
    start, found_before = end - size, found_by_end - hits

    position = torch.arange(examples)  # within the ranking
    tie = torch.repeat_interleave(torch.arange(len(size)), size)
    within = (position - start[tie]).double()
    chance = hits[tie] / size[tie].double()
    curve = torch.zeros(examples + 1, dtype=torch.float64)
    curve[1:] = (found_before[tie] + (within + 1) * chance) / wrong

    # Given that a wrong example stands here, the places above it within the tie are shared out
    # among one fewer: each is wrong with chance (hits - 1) / (size - 1).
    others = (hits[tie] - 1) / (size[tie] - 1).clamp(min=1).double()
    precision = (found_before[tie] + 1 + within * others) / (position + 1)

    right_below = (examples - end) - (wrong - found_by_end)
    wins = (hits * (right_below + (size - hits) / 2)).sum()
    return FoundCurve(
        found={share: _between(curve, share * examples) for share in at},
        curve=curve,
        area=float(torch.trapezoid(curve)) / examples,
        auroc=float(wins) / (wrong * (examples - wrong)),
        average_precision=float((chance * precision).sum()) / wrong,
    )


def _checked(scores: Tensor, is_wrong: Tensor) -> tuple[Tensor, Tensor]:
    scores, is_wrong = scores.detach().cpu(), is_wrong.detach().cpu()
    if scores.ndim != 1 or is_wrong.shape != scores.shape or is_wrong.dtype != torch.bool:
        raise DataError(
            "One score and one bool an example are needed, both [examples]; came scores "
            f"{list(scores.shape)} and is_wrong {list(is_wrong.shape)} of {is_wrong.dtype}."
        )
    wrong = int(is_wrong.sum())
    if wrong in (0, len(scores)):
        raise DataError(
            "A ranking can be judged only where some examples are wrong and others right; "
            f"is_wrong marks {wrong} of {len(scores)}."
        )
    nan = scores.isnan().nonzero()
    if len(nan):
        raise NonFiniteError(
            f"The score of example {int(nan[0])} is NaN ({len(nan)} in all), which has no place "
            "in a ranking. Leave these examples out, or mend what made the scores."
        )
    return scores, is_wrong


def _ties(scores: Tensor, is_wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Runs of equal scores, highest first: how many examples, how many of them wrong."""
    ascending, run, size = torch.unique(scores, return_inverse=True, return_counts=True)
    hits = torch.zeros(len(ascending), dtype=torch.int64).index_add_(0, run, is_wrong.long())
    return size.flip(0), hits.flip(0)


def _between(curve: Tensor, inspected: float) -> float:
    """The curve at a number of examples that need not be whole."""
    below = min(int(inspected), len(curve) - 2)
    # lerp is exact at both ends, so whole numbers give the curve's own values.
    return float(torch.lerp(curve[below], curve[below + 1], inspected - below))
