"""The k highest or lowest of many scores, by one rule for ties: the smaller position first.

`torch.topk` may return any of several equal values. Every list of examples in this library is made
here, so that the same scores give the same list whatever the blocks they came in.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tracin.errors import NonFiniteError


class Top(NamedTuple):
    """The best of each query.

    Attributes:
        values: [queries, k], the best first.
        places: [queries, k], the columns that they came from.
    """

    values: Tensor
    places: Tensor


def top_k(values: Tensor, k: int, *, positions: Tensor | None = None, largest: bool = True) -> Top:
    """The k best values of each query, the best first; of equal values the smaller position first.

    Nothing larger than the values themselves is held, and only rows with ties at the edge are
    looked at twice.

    Args:
        values: [queries, columns]; what may not be chosen is -inf (inf where the lowest are best).
        k: How many; fewer come where there are fewer columns.
        positions: [queries, columns], what settles ties; None where columns are in order of
            position.
        largest: Whether high values are the best.

    Raises:
        NonFiniteError: A value is NaN, which has no rank.

    Example:
        >>> import torch
        >>> top_k(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), 2).places
        tensor([[1, 2]])
    """
    if positions is not None:
        # Columns in order of position, so that only one kind of tie is left.
        order = positions.argsort(dim=1, stable=True)
        top = top_k(values.gather(1, order), k, largest=largest)
        return Top(top.values, order.gather(1, top.places))
    columns = values.shape[1]
    k = min(k, columns)
    found, places = values.topk(min(k + 1, columns), dim=1, largest=largest)
    _refuse_nan(found if largest or not columns else values.amax(1))
    if columns > k > 0:
        # With one value more than is asked for, a tie at the edge shows.
        tied = (found[:, k - 1] == found[:, k]).nonzero()[:, 0].tolist()
        places = places[:, :k].contiguous()
        for query in tied:
            places[query] = _first_of_equals(values[query], found[query, :k], places[query])
    places = places[:, :k].sort(dim=1).values
    best = values.gather(1, places)
    order = best.argsort(dim=1, descending=largest, stable=True)
    return Top(best.gather(1, order), places.gather(1, order))


def _first_of_equals(values: Tensor, best: Tensor, places: Tensor) -> Tensor:
    """The places of the best [k], the first of those that equal the last of them: [k]."""
    edge = best[-1]
    beyond = places[best != edge]
    equal = (values == edge).nonzero()[:, 0]
    return torch.cat([beyond, equal[: len(best) - len(beyond)]])


def _refuse_nan(values: Tensor) -> None:
    # Torch ranks NaN above all numbers: it is among the highest, and is the maximum.
    if bool(values.isnan().any()):
        raise NonFiniteError(
            "A score is NaN, so it has no place in a ranking. Scores come from gradients, products "
            "or normalisation that overflowed: leave the example or the checkpoint out, or compute "
            "in higher precision."
        )
