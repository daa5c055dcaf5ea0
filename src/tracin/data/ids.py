"""Names for examples other than their positions, so that results speak the user's language."""

from collections.abc import Iterable
from typing import Any, final

import numpy as np

from tracin.data.sources import source_of
from tracin.errors import DataError
from tracin.plain_text import a_kind, many, middle_cut, plain

SHOWN = 40  # letters of an id


@final
class WithIds:
    """Data whose examples have ids of their own; without it an id is a position.

    It is a map-style dataset itself, so it may stand inside a DataLoader, and is never changed.

    Args:
        dataset: a map-style Dataset, an unshuffled DataLoader, a tensor, or a tuple or dict of
            tensors with the examples first.
        ids: one integer or one text per example, no two alike.

    Raises:
        DataError: too few or too many ids, two alike, or ids that are neither integers nor texts.

    Example:
        >>> import torch
        >>> named = WithIds((torch.zeros(2, 3), torch.tensor([0, 1])), ["cat.png", "dog.png"])
        >>> len(named), list(named.ids)
        (2, ['cat.png', 'dog.png'])
    """

    def __init__(self, dataset: Any, ids: Iterable[int] | Iterable[str]) -> None:
        self.dataset = dataset
        self.ids = checked_ids(ids)
        self._source = source_of(dataset, "the data of WithIds")
        if len(self.ids) != len(self._source):
            raise DataError(
                f"WithIds needs one id per example, in the order of the data; got {len(self.ids)} "
                f"for {len(self._source)} examples."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        first, last = (middle_cut(plain(self.ids[at]), SHOWN) for at in (0, -1))
        ids = f"id {first}" if len(self) == 1 else f"ids {first} to {last}"
        return f"WithIds({many(len(self), 'example')} of {a_kind(self.dataset)}, {ids})"

    def __getitem__(self, position: int) -> Any:
        return self._source.example(position)


def checked_ids(ids: Iterable[Any]) -> np.ndarray:
    """`ids` as an array [examples]: int64, or objects that are texts.

    Raises:
        DataError: two are alike, or they are neither all integers nor all texts.
    """
    to_list = getattr(ids, "tolist", None)  # arrays, tensors and pandas columns
    listed = to_list() if callable(to_list) else ids
    if isinstance(listed, str | bytes) or not isinstance(listed, Iterable):
        raise DataError(
            f"Ids are a list with one integer or text per example, but got {listed!r}. Pass such "
            "a list, or leave WithIds out: an id is then the example's position."
        )
    values = list(listed)
    integers = [isinstance(value, int | np.integer) and type(value) is not bool for value in values]
    if not all(integers) and not all(isinstance(value, str) for value in values):
        kinds = sorted({type(value).__name__ for value in values})
        raise DataError(
            f"Ids are integers or texts, all of one kind, but these are {', '.join(kinds)}. "
            "Pass [str(i) for i in ids]."
        )
    unwritable = [value for value in values if isinstance(value, str) and not _is_unicode(value)]
    if unwritable:
        raise DataError(
            f"Ids are written to files as Unicode, but {unwritable[0]!r} holds half a character (a "
            "lone surrogate), as file names in another encoding do. Pass "
            "id.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace') instead."
        )
    first: dict[Any, int] = {}
    for position, value in enumerate(values):
        if value in first:
            raise DataError(
                f"Ids tell examples apart, but {value!r} is given twice, at positions "
                f"{first[value]} and {position}. Make them unique; without WithIds an id is the "
                "example's position."
            )
        first[value] = position
    if not all(integers):
        return np.array(values, dtype=object)
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError as error:
        raise DataError(
            "Integer ids are stored in 64 bits with a sign, but got a larger one. "
            "Pass [str(i) for i in ids]."
        ) from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
