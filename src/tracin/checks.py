"""What an argument must be: one check for each kind, with the caller's type of error.

`bool` is an `int` in Python, so `k=True` would pass for 1: it is refused everywhere.
"""

from collections.abc import Iterable
from typing import Any, TypeGuard

from tracin.errors import TracInError


def is_int(value: object, low: int | None = None, high: int | None = None) -> TypeGuard[int]:
    """Whether this is a whole number, from `low` to `high` where they are given.

    Example:
        >>> is_int(3, low=1), is_int(True), is_int(3.0), is_int(3, high=2)
        (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return (low is None or low <= value) and (high is None or value <= high)


def positive_int(value: Any, name: str, error: type[TracInError], also: str = "") -> int:
    """The value, if it is a whole number of at least 1.

    `also` says what else the argument may be, such as "None"; the caller checks that.

    Example:
        >>> from tracin.errors import QueryError
        >>> positive_int(0, "candidates", QueryError)
        Traceback (most recent call last):
        tracin.errors.QueryError: candidates is a whole number of at least 1; 0 was given.
    """
    if not is_int(value, low=1):
        either = f"{also} or " if also else ""
        raise error(f"{name} is {either}a whole number of at least 1; {value!r} was given.")
    return value


def count_within(
    k: Any,
    most: int,
    there: str,
    error: type[TracInError],
    what: str = "results",
    way_out: str = "",
) -> int:
    """k, if it is a whole number from 1 to `most`.

    Args:
        k: How many the caller asks for.
        most: How many there are.
        there: The same in words, such as "train holds 60 examples".
        error: The type of error to raise.
        what: What k counts.
        way_out: What else helps, after a comma.

    Example:
        >>> from tracin.errors import QueryError
        >>> count_within(9, 4, "train holds 4 examples", QueryError)
        Traceback (most recent call last):
        tracin.errors.QueryError: k=9 results were asked for, but train holds 4 examples. Give a k from 1 to 4.
    """  # noqa: E501
    if most == 0 and is_int(k, 1):
        raise error(f"k={k!r} {what} were asked for, but {there}.")
    if not is_int(k, 1, most):
        raise error(
            f"k={k!r} {what} were asked for, but {there}. Give a k from 1 to {most}{way_out}."
        )
    return k


def one_of(
    value: Any, allowed: Iterable[str], name: str, error: type[TracInError], also: str = ""
) -> None:
    """Refuse a word that is not one of those allowed; the message lists them.

    `also` is as in `positive_int`.

    Example:
        >>> from tracin.errors import QueryError
        >>> one_of("max", ("sum", "mean"), "group", QueryError, also="None")
        Traceback (most recent call last):
        tracin.errors.QueryError: group is None or one of "sum", "mean"; 'max' was given.
    """
    words = tuple(allowed)
    if not isinstance(value, str) or value not in words:
        either = f"{also} or " if also else ""
        choices = ", ".join(f'"{word}"' for word in words)
        raise error(f"{name} is {either}one of {choices}; {value!r} was given.")
