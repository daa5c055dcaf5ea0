"""Losses see rows of a batch; who reads the batches knows whose they are."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tracin.data import Batch, Examples, content_of
from tracin.errors import DataWarning, LabelError
from tracin.losses import noting_unlabelled, unlabelled_warning

# Ids in one warning; the rest are counted.
NAMED = 5


@contextmanager
def examples_named(examples: Examples, positions: Sequence[int], batch: Batch) -> Iterator[None]:
    """Name the examples of a batch in what losses have to say of them.

    Args:
        examples: Where the batch comes from.
        positions: The positions of its examples.
        batch: The batch; passes within may be over parts of it.

    Raises:
        LabelError: As losses raise it, with the example's id in place of its row.
    """
    with noting_unlabelled() as noted:
        try:
            yield
        except LabelError as error:
            row = None if error.row_in is None else error.row_in(content_of(batch))
            if row is None or error.whose is None:
                raise
            name = f"example {_id(examples, positions[row])!r}"
            raise LabelError(error.args[0].replace(error.whose, name)) from error
    if noted:
        rows = noted[0](content_of(batch))
        _warn(examples, [positions[row] for row in rows])


def _warn(examples: Examples, positions: Sequence[int]) -> None:
    new = [position for position in positions if position not in examples.unlabelled]
    examples.unlabelled.update(new)
    if not new:
        return
    names = ", ".join(repr(_id(examples, position)) for position in new[:NAMED])
    more = f" and {len(new) - NAMED} more" if len(new) > NAMED else ""
    kind = "example" if len(new) == 1 else "examples"
    warnings.warn(unlabelled_warning(f"{kind} {names}{more}"), DataWarning, stacklevel=2)


def _id(examples: Examples, position: int) -> Any:
    found = examples.ids[position]
    return found.item() if isinstance(found, np.generic) else found
