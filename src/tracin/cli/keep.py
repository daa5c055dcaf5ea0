"""`--keep`: which training examples may be hits, in words of the table of an index's rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tracin.errors import QueryError

if TYPE_CHECKING:
    import numpy as np

    Rows = Mapping[str, np.ndarray]


def keep_of(texts: Sequence[str]) -> "Callable[[Rows], np.ndarray] | None":
    """A function of the rows' table: all of the texts must hold; None for no text.

    Args:
        texts: "right", for examples that the last checkpoint does not get wrong; or a column and a
            value, such as "label=3".

    Raises:
        QueryError: When it is called: there is no such column, or the value is none of its kind.
    """
    if not texts:
        return None

    def keep(rows: "Rows") -> "np.ndarray":
        import numpy as np

        return np.logical_and.reduce([_holds(text, rows) for text in texts])

    return keep


def _holds(text: str, rows: "Rows") -> "np.ndarray":
    if text == "right":
        return rows["is_right"] != 0
    name, equals, value = (each.strip() for each in text.partition("="))
    if not equals or name not in rows:
        raise QueryError(
            f"--keep takes 'right', or a column and a value, such as label=3; the columns are "
            f"{', '.join(rows)}, and {text!r} was given."
        )
    column = rows[name]
    try:
        return column == (value if column.dtype == object else column.dtype.type(value))
    except ValueError as error:
        raise QueryError(
            f"--keep {text}: the column '{name}' holds {column.dtype}, and {value!r} is none."
        ) from error
