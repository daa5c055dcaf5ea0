"""How many tokens examples have: from the columns of a dataset, or from its examples."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, final

import numpy as np
from torch.utils.data import Subset

from tracin.checks import is_int
from tracin.data.tokens import Length
from tracin.errors import DataError
from tracin.plain_text import a_kind
from tracin.random_state import same_random_state

FIELDS = ("input_ids", "labels")
LONGEST = 2**63 - 1
AT_ONCE = 10_000  # rows of a table


def length_of(example: Any, length: Length | None, whose: str) -> int:
    """The length of one example.

    Args:
        example: As the data gives it.
        length: The user's function; None takes the longer of "input_ids" and "labels".
        whose: The example in words, for errors.

    Raises:
        DataError: It has neither, or the function returns no length.

    Example:
        >>> length_of({"input_ids": [5, 6, 7], "label": 1}, None, "example 0")
        3
    """
    if length is not None:
        found: Any = length(example)
        is_one = getattr(found, "size", None) == 1 or getattr(found, "numel", int)() == 1
        number = found.item() if is_one else found  # of an array or a tensor
        if not is_int(number, low=0, high=LONGEST):
            raise DataError(
                "The length that tracin.Tokens was given returns a whole number per example, but "
                f"for {whose} it returned {found!r}."
            )
        return number
    fields = example if isinstance(example, Mapping) else {}
    found = [_size(fields[name]) for name in FIELDS if name in fields]
    if max(found, default=0) == 0:
        raise DataError(
            f"tracin.Tokens takes the length of an example from its 'input_ids' or 'labels', and "
            f"{whose} has none: it is {a_kind(example)}. Say how long an example is, such as "
            "tracin.Tokens(16_384, length=lambda example: len(example[0])), or pass a number of "
            "examples."
        )
    return max(found)


@final
class KnownLengths:
    """The lengths of a source's examples, each asked for once.

    Args:
        example: Returns the example at a position.
        examples: How many there are.
        name: What they are called in errors.
        table: A dataset whose columns may tell the lengths; None for none.
    """

    def __init__(
        self, example: Callable[[int], Any], examples: int, name: str, table: Any = None
    ) -> None:
        self._example, self._name, self._table = example, name, table
        self._examples = examples
        self._length: Length | None = None
        self._known: np.ndarray | None = None

    def at(self, positions: Sequence[int], length: Length | None) -> np.ndarray:
        """The lengths at these positions: [positions].

        Raises:
            DataError: The length of an example is not known.
        """
        if self._known is None or self._length is not length:
            of_all = column_lengths(self._table) if length is None else None
            self._known = np.full(self._examples, -1) if of_all is None else of_all
            self._length = length
        chosen = np.asarray(positions, dtype=np.int64)
        # Reading examples may draw random numbers, which the passes after it draw, too.
        with same_random_state():
            for at in chosen[self._known[chosen] < 0].tolist():
                whose = f"the example at position {at} of {self._name}"
                self._known[at] = length_of(self._example(at), length, whose)
        return self._known[chosen]


def column_lengths(dataset: Any) -> np.ndarray | None:
    """The lengths of all examples, [examples], where a table tells; None where it does not.

    Of a `datasets.Dataset` the offsets of its columns are read and no token. A transform may cut
    examples, so that these have to be looked at one by one.
    """
    if type(dataset) is Subset:
        whole = column_lengths(dataset.dataset)
        return None if whole is None else whole[list(dataset.indices)]
    written = getattr(dataset, "format", None)
    if not isinstance(written, Mapping) or written.get("type") == "custom":
        return None
    if not callable(getattr(dataset, "select_columns", None)):
        return None
    names = [name for name in FIELDS if name in dataset.column_names]
    if not names:
        return None
    table = dataset.select_columns(names).with_format("arrow")
    pieces = [
        _longest(table[start : start + AT_ONCE], names) for start in range(0, len(table), AT_ONCE)
    ]
    known = [piece for piece in pieces if piece is not None]
    return np.concatenate(known) if known and len(known) == len(pieces) else None


def _longest(rows: Any, names: list[str]) -> np.ndarray | None:
    import pyarrow  # what has such a table has pyarrow

    compute: Any = import_module("pyarrow.compute")  # its functions are made at import

    kinds = pyarrow.types
    listed = [
        compute.fill_null(compute.list_value_length(rows[name]), 0).to_numpy()
        for name in names
        if kinds.is_list(rows[name].type) or kinds.is_large_list(rows[name].type)
    ]
    return np.maximum.reduce(listed).astype(np.int64) if listed else None


def _size(value: Any) -> int:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return int(shape[-1]) if len(shape) else 0
    return len(value) if isinstance(value, list | tuple) else 0
