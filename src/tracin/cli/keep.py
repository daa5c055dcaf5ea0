"""`--keep`: conditions on the columns of an index's rows, for examples that may be results."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tracin.errors import QueryError

SHOWN = 10  # values of a column, in an error

if TYPE_CHECKING:
    import numpy as np

    Rows = Mapping[str, np.ndarray]


def keep_of(texts: Sequence[str]) -> "Callable[[Rows], np.ndarray] | None":
    """A function of the rows' table: all of the texts must hold; None for no text.

    Args:
        texts: "right", for examples that the last checkpoint does not get wrong; or a column and a
            value, such as "label=3".

    Raises:
        QueryError: When it is called: there is no such column, the value is not of its kind, or no
            example matches.
    """
    if not texts:
        return None

    def keep(rows: "Rows") -> "np.ndarray":
        import numpy as np

        matching = np.logical_and.reduce([_holds(text, rows) for text in texts])
        if not matching.any():
            raise QueryError(_none_matches(texts, rows))
        return matching

    return keep


def _none_matches(texts: Sequence[str], rows: "Rows") -> str:
    import numpy as np

    options = " ".join(f"--keep {text}" for text in texts)
    count = len(rows["position"]) if "position" in rows else len(next(iter(rows.values())))
    message = f"{options}: none of the {count} examples of the index matches."
    column = texts[0].partition("=")[0].strip()
    if len(texts) == 1 and column in rows:
        values = np.unique(rows[column])
        shown = ", ".join(map(str, values[:SHOWN].tolist()))
        message += f" The column '{column}' holds {shown}{', ...' if len(values) > SHOWN else ''}."
    return message


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
    except (ValueError, OverflowError) as error:  # no number, or none of this many bits
        raise QueryError(
            f"--keep {text}: the column '{name}' holds {column.dtype}; {value!r} is not one."
        ) from error
