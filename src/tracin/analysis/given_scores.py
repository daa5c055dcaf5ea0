"""Scores of any origin as numbers: tensors, arrays, tables of suspects, objects with values."""

from typing import Any

import numpy as np
from torch import Tensor

from tracin.analysis.arrays import cpu_tensor
from tracin.baselines.suspect_scores import SuspectScores
from tracin.errors import DataError, NonFiniteError
from tracin.plain_text import a_kind
from tracin.results.suspects import RANKINGS, Suspects

# How other libraries call a result's numbers: pandas, then this library's results.
_NAMES = ("values", "scores")


def given_scores(given: Any, name: str = "scores") -> Tensor:
    """One finite number per training example, in the order of the data; high comes first.

    Args:
        given: A tensor or array [train], a list of numbers, an object that has them as `.values` or
            `.scores` (a pandas column, a baseline's result), or `tracin.Suspects`, by the column
            that they are ranked by.
        name: What messages call them.

    Returns:
        [train], float64, on the CPU.

    Raises:
        DataError: It holds no numbers, or not one per example, or is a part of a ranking.
        NonFiniteError: A score is NaN, which has no rank.

    Example:
        >>> import numpy as np
        >>> given_scores(np.array([1, 3, 2]))
        tensor([1., 3., 2.], dtype=torch.float64)
    """
    values = as_numbers(given, name)
    if values.ndim != 1:
        raise DataError(
            f"{name} holds one number per training example, [train]; came {list(values.shape)}. Of "
            "an influence matrix [train, queries] give one column, or its mean over queries."
        )
    return values


def as_numbers(given: Any, name: str) -> Tensor:
    """Numbers of any shape as a float64 tensor on the CPU, none of them NaN.

    Raises:
        DataError: It holds no numbers.
        NonFiniteError: A number is NaN.
    """
    if isinstance(given, Suspects):
        column = given.ranked_by
        scores = RANKINGS[column](given.scores[column])
        given = scores[_data_order(given.positions, name)]
    elif isinstance(given, SuspectScores) and given.positions is not None:
        given = given.values[_data_order(given.positions, name)]
    for attribute in _NAMES:
        inner = getattr(given, attribute, None)
        if inner is not None and not callable(inner) and not isinstance(given, Tensor):
            given = inner
            break
    try:
        values = cpu_tensor(given)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} must be numbers: a tensor, an array, a list, or an object with them as "
            f".values; {a_kind(given)} came ({error})."
        ) from error
    values = values.double()
    nan = values.isnan().nonzero()
    if len(nan):
        raise NonFiniteError(
            f"{name} of example {int(nan[0, 0]) if values.ndim else 0} is NaN ({len(nan)} in all), "
            "which has no place in a ranking. Leave these examples out, or correct what made the "
            "scores."
        )
    return values


def _data_order(positions: np.ndarray, name: str) -> np.ndarray:
    """Where each example of the data is in a ranking: [train].

    Raises:
        DataError: The ranking does not hold all of them.
    """
    back = np.argsort(positions, kind="stable")
    if not np.array_equal(positions[back], np.arange(len(positions))):
        raise DataError(
            f"{name} holds one number per training example, but {len(positions)} examples of a "
            "ranking were given, such as its top. Give the whole of it."
        )
    return back
