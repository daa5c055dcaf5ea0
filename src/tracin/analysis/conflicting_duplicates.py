"""Near-duplicates with different labels: one of the two is wrong, or classes overlap."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.analysis.arrays import cpu_tensor
from tracin.baselines.forward import class_steps
from tracin.baselines.last_layer import features_of, last_linear
from tracin.checks import positive_int
from tracin.data import Examples, in_data_order
from tracin.errors import DataError, NonFiniteError, QueryError, UnsupportedModelError
from tracin.guards import guarded
from tracin.plain_text import a_kind
from tracin.results.table import aligned
from tracin.results.tabular import Tabular
from tracin.run import Run, open_data, score_dtype
from tracin.scoring.batch_size import BatchSize

NAME = "conflicting_duplicates"
MEMORY = 1 << 28  # bytes
COPIES = 3  # of a block of cosines, while the largest are taken
SHOWN = 10


@final
@dataclass(frozen=True, eq=False, repr=False)
class ConflictingDuplicates(Tabular):
    """Pairs of examples that look alike under different labels, the most alike first.

    polars, pandas and pyarrow take it as it is. Printing it gives a table.

    Attributes:
        ids: [pairs, 2]; the examples' ids, the one earlier in the data first.
        positions: [pairs, 2]; their positions in train.
        labels: [pairs, 2]; their labels.
        cosines: [pairs].
        limit: The cosine from which two count as near-duplicates.
        total: How many examples train holds.
    """

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    cosines: np.ndarray
    limit: float
    total: int

    def __len__(self) -> int:
        return len(self.cosines)

    def columns(self) -> dict[str, np.ndarray]:
        """One row per pair."""
        sides = {"id": self.ids, "position": self.positions, "label": self.labels}
        both = {
            f"{name}_{side + 1}": each[:, side] for side in range(2) for name, each in sides.items()
        }
        return {**both, "cosine": self.cosines}

    def __str__(self) -> str:
        head = (
            f"{len(self):,} pairs of near-duplicates with different labels among {self.total:,} "
            f"examples (cosine of at least {self.limit:g})"
        )
        names = ("id_1", "label_1", "id_2", "label_2", "cosine")
        columns = self.columns()
        rows = list(zip(*(columns[name][:SHOWN] for name in names), strict=True))
        more = f"\n... {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return f"{head}\n{aligned(names, rows)}{more}" if rows else head


@guarded
def conflicting_duplicates(
    run: Run,
    train: Any,
    *,
    cosine: float = 0.8,
    features: Any = None,
    memory: int = MEMORY,
    batch_size: BatchSize = "auto",
    progress: bool | None = None,
) -> ConflictingDuplicates:
    """List training examples that look alike under different labels.

    Of each example, the most alike one with another label is taken, if the cosine of their features
    reaches `cosine`; so there are at most as many pairs as examples. Features are centred first:
    where all are positive, as after a ReLU, any two would look alike.

    Args:
        run: The model, a loss that knows classes such as "cross_entropy", and the checkpoints; the
            last one is read.
        train: The labelled examples.
        cosine: From which on two are near-duplicates; above 0, up to 1.
        features: [train, features]; None for the inputs of the model's last layer. Those of a
            general encoder are better, since a model that was trained on the wrong labels moves
            near-duplicates apart.
        memory: Approximate limit, in bytes, for blocks of cosines. Features are held besides.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.

    Returns:
        The pairs, each once.

    Raises:
        QueryError: `cosine` or `memory` cannot be.
        DataError: `features` is no array with one row per example.
        LossError: The loss knows no classes, or an example has several labels.
        UnsupportedModelError: The last layer is no `torch.nn.Linear`, and no features are given.
        NonFiniteError: A loss or a feature is NaN or infinite.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(2, 2)
        >>> run = tracin.TracIn(
        ...     model, "cross_entropy", [model.state_dict()], learning_rates="equal"
        ... )
        >>> inputs = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 1.0], [-1.0, -1.1]])
        >>> print(tracin.conflicting_duplicates(run, (inputs, torch.tensor([0, 1, 0, 1]))))
        1 pairs of near-duplicates with different labels among 4 examples (cosine of at least 0.8)
        id_1  label_1  id_2  label_2  cosine
           0        0     1        1   0.995
    """
    if not isinstance(cosine, int | float) or isinstance(cosine, bool) or not 0 < cosine <= 1:
        raise QueryError(
            "cosine is the number from which two examples are near-duplicates, above 0 and up to "
            f"1; {cosine!r} was given."
        )
    positive_int(memory, "memory", QueryError)
    examples = open_data(run, train, "train")
    given = None if features is None else _checked(features, len(examples))
    last = len(run.checkpoints) - 1
    if given is None:
        try:
            layer = last_linear(run, examples, NAME)
            found = features_of(run, layer, examples, last, NAME, batch_size, progress)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(
                f"{error} For {NAME}, pass features=[train, features] of your own."
            ) from error
        given, labels = found.inputs.to(score_dtype(run)), found.labels
    else:
        steps = class_steps(run, examples, [last], NAME, batch_size, progress)
        labels = in_data_order((step.positions, step.outcome.labels.cpu()) for step in steps)
    nearest, cosines = _nearest_of_another_label(given, labels, memory)
    return _pairs(examples, labels, nearest, cosines, float(cosine))


def _nearest_of_another_label(
    features: Tensor, labels: Tensor, memory: int
) -> tuple[Tensor, Tensor]:
    """The most alike example with another label, and the cosine: [train] each."""
    centred = features - features.mean(0)
    directions = F.normalize(centred, dim=1, eps=torch.finfo(features.dtype).tiny)
    nearest = torch.zeros(len(features), dtype=torch.int64)
    cosines = torch.zeros(len(features), dtype=features.dtype)
    for rows in _blocks(len(features), memory // (COPIES * features.element_size())):
        likeness = directions[rows] @ directions.mT
        likeness.masked_fill_(labels[rows, None] == labels, -torch.inf)
        cosines[rows], nearest[rows] = likeness.max(1)
    return nearest, cosines


def _pairs(
    examples: Examples, labels: Tensor, nearest: Tensor, cosines: Tensor, limit: float
) -> ConflictingDuplicates:
    """Those that reach the limit, each once, the most alike first."""
    one = (cosines >= limit - 4 * torch.finfo(cosines.dtype).eps).nonzero()[:, 0]
    pairs = torch.stack([one, nearest[one]], 1).sort(1).values
    keys, at = np.unique((pairs[:, 0] * len(labels) + pairs[:, 1]).numpy(), return_index=True)
    found = cosines[one].double().numpy()[at]
    order = np.lexsort((keys, -found))
    positions = pairs.numpy()[at][order]
    return ConflictingDuplicates(
        examples.ids[positions],
        positions,
        labels.numpy()[positions],
        found[order].clip(max=1.0),
        limit,
        len(examples),
    )


def _blocks(examples: int, numbers: int) -> Iterator[slice]:
    """Runs of rows whose cosines with all examples are about as many numbers."""
    step = max(1, numbers // examples)
    for start in range(0, examples, step):
        yield slice(start, min(start + step, examples))


def _checked(features: Any, examples: int) -> Tensor:
    try:
        given = cpu_tensor(features)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"features is an array of numbers, [train, features]; came {a_kind(features)} "
            f"({error})."
        ) from error
    if given.ndim != 2 or len(given) != examples:
        raise DataError(
            f"features is an array with one row per example, [{examples}, features]; came "
            f"{list(given.shape)}."
        )
    if not given.is_floating_point():
        given = given.float()
    if not bool(given.isfinite().all()):
        row = int((~given.isfinite()).any(1).nonzero()[0, 0])
        raise NonFiniteError(
            f"The features of the example at position {row} are NaN or infinite. Correct them, or "
            "leave the example out of train and features."
        )
    return given.float() if given.dtype in (torch.float16, torch.bfloat16) else given
