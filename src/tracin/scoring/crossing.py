"""Whether documents of packed rows are alone what they are in their rows."""

from collections import Counter
from collections.abc import Mapping
from math import hypot

import torch
from torch import Tensor
from torch.utils.data import default_collate

from tracin.data import Examples, move
from tracin.data.packed import IGNORED
from tracin.errors import DataError
from tracin.gradients import Gradients
from tracin.gradients.distances import lengths_by_name
from tracin.gradients.reference import weighted_gradients

LOOKED_AT = 2  # documents of each kind that are compared; each costs two plain passes


def refuse_crossing(gradients: Gradients, examples: Examples, device: torch.device) -> None:
    """Compare the first documents of each kind with what they are in their rows.

    The kinds are those behind another document, and those of a row whose positions do not begin
    with 0: a model that knows absolute positions sees others in the document alone.

    Args:
        gradients: With the weights in place, and a tolerance known.
        examples: Any; only documents that were taken out of their rows are compared, once.
        device: Where the model is.

    Raises:
        DataError: The model makes a difference between a document alone and in its row.
    """
    if examples.apart is None:
        return
    documents, positions = examples.apart
    examples.apart = None
    if documents.is_certain:
        return
    compared: Counter[tuple[bool, bool]] = Counter()
    for at, position in enumerate(positions):
        span = documents.spans[position]
        kind = span.place > 0, span.position > 0
        if not any(kind) or compared[kind] == LOOKED_AT:
            continue
        alone, in_row = documents[position], documents.in_its_row(position)
        if bool((in_row["labels"] == IGNORED).all()):
            continue
        gap = _gap(gradients, alone, in_row, device)
        if not gap <= gradients.tolerance:  # NaN counts as a difference
            raise DataError(
                f"Document {examples.ids[at]!r} of {examples.name} is not what it was in its row: "
                f"alone, its loss or gradient is {gap:.1%} off. In this model attention crosses "
                "from one document into the next, or positions count on. If it was so in "
                "training, pass tracin.documents(rows, in_context=True). If training kept "
                "documents apart by other means than the model and the rows show, such as another "
                "attention, pass in_context=False."
            )
        compared[kind] += 1


def _gap(
    gradients: Gradients,
    one: dict[str, Tensor],
    other: dict[str, Tensor],
    device: torch.device,
) -> float:
    """How far loss or gradient of two examples are apart, relative to the larger one."""
    first, second = (move(default_collate([each]), device) for each in (one, other))
    losses = [gradients.loss_of(each) for each in (first, second)]
    gap = abs(losses[0] - losses[1]) / (max(map(abs, losses)) + 1e-30)
    if gradients.is_sharded or gap > gradients.tolerance:
        return gap
    found = [
        weighted_gradients(gradients.model, gradients.compute, each, gradients.parameters)[0]
        for each in (first, second)
    ]
    sizes = [_length(each) for each in found]
    apart = _length({name: found[0][name] - found[1][name] for name in found[0]})
    return max(gap, apart / (max(sizes) + 1e-30))


def _length(gradient: Mapping[str, Tensor]) -> float:
    return hypot(*lengths_by_name(gradient).values())
