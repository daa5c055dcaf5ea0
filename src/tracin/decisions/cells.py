"""One column of a table on the disk, of any origin: numbers stay NumPy, texts stay Arrow."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np

from tracin.errors import DecisionError

if TYPE_CHECKING:
    import pyarrow

Cell: TypeAlias = int | float | str | None

_STEP = 1 << 16
_LARGEST = 2**63 - 1


@final
class Cells:
    """The values of one column, one per row.

    Whole numbers take as few bytes as hold them all. Texts stay in Arrow's memory: a million Python
    strings would take several times as much.

    Attributes:
        values: [rows]: a NumPy array of numbers, or Arrow's array of texts.
    """

    def __init__(self, values: "np.ndarray | pyarrow.Array") -> None:
        self.values = values

    @classmethod
    def of(cls, column: "pyarrow.ChunkedArray") -> "Cells":
        """A column as it was read; what is neither a number nor a text becomes a text."""
        import pyarrow
        from pyarrow import types

        kind = column.type
        if types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if types.is_boolean(kind):
            column, kind = column.cast(pyarrow.int8()), pyarrow.int8()
        if types.is_integer(kind) and column.null_count == 0:
            numbers = _numbers(column)
            if not len(numbers) or int(numbers.max()) <= _LARGEST:
                return cls(_narrow(numbers))
            kind = pyarrow.null()  # ids that 64 bits with a sign cannot hold: texts
        if types.is_integer(kind) or types.is_floating(kind):
            is_short = types.is_float32(kind) or types.is_float16(kind)
            floats = column.cast(pyarrow.float32() if is_short else pyarrow.float64())
            return cls(_numbers(floats.fill_null(float("nan")) if floats.null_count else floats))
        if not (types.is_string(kind) or types.is_large_string(kind)):
            texts = [None if one is None else str(one) for one in column.to_pylist()]
            column = pyarrow.chunked_array([pyarrow.array(texts, pyarrow.string())])
        # Large: texts of more than 2 GB do not fit in one piece otherwise.
        whole = column.cast(pyarrow.large_string()).combine_chunks()
        return cls(whole.combine_chunks() if isinstance(whole, pyarrow.ChunkedArray) else whole)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_text(self) -> bool:
        """Whether the values are texts."""
        return not isinstance(self.values, np.ndarray)

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.values, np.ndarray) and self.values.dtype.kind == "i"

    def __getitem__(self, row: int) -> Cell:
        value = self.values[row]
        return value.as_py() if self.is_text else value.item()

    def taken(self, rows: np.ndarray) -> "Cells":
        """The values of some rows, in that order."""
        if isinstance(self.values, np.ndarray):
            return Cells(self.values[rows])
        import pyarrow

        return Cells(self.values.take(pyarrow.array(rows)))

    def array(self, rows: np.ndarray | None = None) -> np.ndarray:
        """As NumPy: whole numbers in 64 bits, texts as objects. [rows]."""
        some = self if rows is None else self.taken(rows)
        if isinstance(some.values, np.ndarray):
            return some.values.astype(np.int64, copy=False) if some.is_whole else some.values
        return np.array(some.values.to_pylist(), dtype=object)

    def equal(self, value: Cell) -> np.ndarray:
        """Whether each is this value: [rows], bool."""
        if isinstance(self.values, np.ndarray):
            if isinstance(value, str) or value is None:
                return np.zeros(len(self), dtype=bool)
            return self.values == value
        if not isinstance(value, str):
            return np.zeros(len(self), dtype=bool)
        from pyarrow import compute

        return _bools(compute.call_function("equal", [self.values, value]))

    def differing(self, other: "Cells") -> np.ndarray:
        """Whether each differs from the other column's: [rows], bool."""
        if isinstance(self.values, np.ndarray) and isinstance(other.values, np.ndarray):
            return self.values != other.values
        if self.is_text and other.is_text:
            from pyarrow import compute

            return _bools(compute.call_function("not_equal", [self.values, other.values]))
        return np.ones(len(self), dtype=bool)

    def containing(self, words: str) -> np.ndarray:
        """Whether each contains the words, letter by letter but in any case: [rows], bool.

        Numbers contain what they are.
        """
        if isinstance(self.values, np.ndarray):
            number = number_in(words)
            return self.equal(number)
        from pyarrow import compute

        options = compute.MatchSubstringOptions(words, ignore_case=True)
        return _bools(compute.call_function("match_substring", [self.values], options))

    def distinct(self, most: int) -> list[Cell] | None:
        """The values there are, sorted; None where there are more than `most`."""
        if isinstance(self.values, np.ndarray):
            found: list[Any] = np.unique(self.values).tolist()
        else:
            found = sorted(self.values.unique().drop_null().to_pylist())
        return found if len(found) <= most else None

    def pieces(self) -> Iterator[bytes]:
        """What a fingerprint is made from: equal for equal values, whatever the file."""
        if isinstance(self.values, np.ndarray):
            kind = "<i8" if self.is_whole else "<f8"
            yield kind.encode()
            yield np.ascontiguousarray(self.values, dtype=kind).tobytes()
            return
        yield b"text"
        for start in range(0, len(self), _STEP):
            yield json.dumps(self.values.slice(start, _STEP).to_pylist()).encode()


def number_in(words: str) -> int | float | None:
    """The number that a text is; None for any other.

    Example:
        >>> number_in("42"), number_in("-1.5"), number_in("cat"), number_in("nan")
        (42, -1.5, None, None)
    """
    try:
        return int(words)
    except ValueError:
        pass
    try:
        value = float(words)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def as_label(value: Any, like: Cells) -> Cell:
    """A new label, of the kind of those that are there: 2.5 is no label among whole numbers.

    Raises:
        DecisionError: It is of another kind, too long, or not finite.

    Example:
        >>> as_label("7", like=Cells(np.array([1, 2])))
        7
    """
    value = value.item() if isinstance(value, np.generic) else value
    if like.is_text:
        if isinstance(value, str) and 0 < len(value) <= 200:
            return value
        raise DecisionError(f"A new label is a text of 1 to 200 characters; got {value!r:.60}.")
    number = number_in(value) if isinstance(value, str) else value
    if isinstance(number, int | float) and not isinstance(number, bool) and np.isfinite(number):
        if not like.is_whole:
            return float(number)
        if int(number) == number and abs(number) < 1 << 53:
            return int(number)
    kind = "a whole number" if like.is_whole else "a number"
    raise DecisionError(f"A new label is {kind}, as those of the data are; got {value!r:.60}.")


def _bools(found: Any) -> np.ndarray:
    import pyarrow

    return np.from_dlpack(found.fill_null(False).cast(pyarrow.uint8())).view(bool)


def _narrow(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers in as few bytes as hold them all."""
    if not len(numbers):
        return numbers.astype(np.int64)
    low, high = int(numbers.min()), int(numbers.max())
    kinds = (np.int8, np.int16, np.int32, np.int64)
    least = next((k for k in kinds if np.iinfo(k).min <= low <= high <= np.iinfo(k).max), np.int64)
    return numbers.astype(least, copy=False)


def _numbers(column: "pyarrow.ChunkedArray") -> np.ndarray:
    """A column of numbers without gaps; Arrow's own `to_numpy` imports pandas where it is there."""
    whole = column.combine_chunks()
    chunks = [whole] if not hasattr(whole, "chunks") else whole.chunks
    return np.concatenate([np.from_dlpack(one) for one in chunks]) if chunks else np.empty(0)
