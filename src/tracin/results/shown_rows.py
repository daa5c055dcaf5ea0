"""Joins results back to the data that they are about: what is at each position?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tracin.data import Examples, open_examples
from tracin.errors import DataError
from tracin.plain_text import first_line, plain
from tracin.random_state import same_random_state
from tracin.results.shown import Showing, Shown


def shown_rows(
    data: Any, positions: Sequence[int], ids: Sequence[Any], how: Showing, *, name: str = "train"
) -> list[Shown]:
    """The examples at some positions, as a person sees them: one per position.

    Args:
        data: The data that the result is about; what `TracIn` takes.
        positions: Positions in it.
        ids: The ids that the result has at these positions.
        how: How an example becomes a `Shown`.
        name: What to call the data in errors.

    Raises:
        DataError: The data is too short, or has another id at a position: it is not the data that
            the result is about.

    Example:
        >>> rows = shown_rows((np.zeros((3, 2)), ["a", "b", "c"]), [2], [2], Showing())
        >>> print(rows[0])
        [c] 0, 0
    """
    examples = open_examples(data, name=name)
    for position, given in zip(positions, ids, strict=True):
        _check(examples, int(position), given)
    # A data set that augments draws random numbers, which belong to the user.
    with same_random_state():
        return [_shown(examples, int(position), how) for position in positions]


def shown_queries(data: Any, ids: Sequence[Any], how: Showing) -> list[Shown | None]:
    """The queries with some ids; None for what is no query of the data, such as a group's sum."""
    examples = open_examples(data, name="queries")
    place = {each: at for at, each in enumerate(examples.ids.tolist())}
    asked = [place.get(_plain_id(each)) for each in ids]
    with same_random_state():
        return [None if at is None else _shown(examples, at, how) for at in asked]


def _check(examples: Examples, position: int, given: Any) -> None:
    if not 0 <= position < len(examples):
        raise DataError(
            f"{examples.name} holds {len(examples)} examples, but the result has one at position "
            f"{position}. Pass the data that the result was made from."
        )
    found = examples.ids[position]
    if _plain_id(found) != _plain_id(given):
        raise DataError(
            f"{examples.name} has the id {plain(found)} at position {position}, but the result has "
            f"{plain(given)} there. Pass the data that the result was made from, with its ids "
            "(tracin.with_ids or tracin.WithIds)."
        )


def _shown(examples: Examples, position: int, how: Showing) -> Shown:
    try:
        example = examples.example(position)
    except Exception as error:  # a file may be gone, a decoder may fail
        reason = f"{type(error).__name__}: {first_line(error)}"
        return Shown(note=f"the data set cannot give this example: {reason}")
    return how.of(example)


def _plain_id(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
