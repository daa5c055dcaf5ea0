"""What each checkpoint adds to the scores, and which examples it ranks first (figure 8)."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.data import Size, open_examples
from tracin.errors import QueryError
from tracin.guards import guarded
from tracin.results.table import aligned, numbers
from tracin.results.tabular import Tabular
from tracin.run import Run, checkpoint_pass, open_data, score_dtype
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.scoring.score_request import ScoreRequest
from tracin.scoring.settled import settled


@final
@dataclass(frozen=True, eq=False, repr=False)
class Contributions(Tabular):
    """What each checkpoint adds to the scores, and which examples it ranks first.

    polars, pandas and pyarrow take it as it is, one row a checkpoint.

    Attributes:
        names: The checkpoints' names.
        self_influence: [checkpoints, train]; its sum over checkpoints is `run.self_influence`.
        positive: [checkpoints, queries], or None: the sum of each query's positive scores.
        negative: [checkpoints, queries], or None: the sum of its negative scores.
        classes: The classes, or other groups, that `mix` counts; empty without labels.
        mix: [checkpoints, classes]: how many of each class are among the first in the
            checkpoint's own ranking by self-influence (paper, figure 8).
        first: How many examples of each ranking were looked at.
    """

    names: tuple[str, ...]
    self_influence: Tensor
    positive: Tensor | None
    negative: Tensor | None
    classes: tuple[Any, ...]
    mix: np.ndarray
    first: int

    def __len__(self) -> int:
        return len(self.names)

    def columns(self) -> dict[str, np.ndarray]:
        """One row a checkpoint: its share of all self-influence, sums, and counts by class."""
        own = numbers(self.self_influence.double().sum(1))
        columns = {
            "checkpoint": np.array(self.names, dtype=object),
            "self-influence": own,
            "share": own / own.sum() if own.sum() > 0 else np.zeros_like(own),
        }
        if self.positive is not None and self.negative is not None:
            columns["positive"] = numbers(self.positive.double().sum(1))
            columns["negative"] = numbers(self.negative.double().sum(1))
        for at, each in enumerate(self.classes):
            columns[f"class {each}"] = self.mix[:, at]
        return columns

    def __str__(self) -> str:
        columns = self.columns()
        about = f"classes among the first {self.first} of each checkpoint's ranking\n"
        table = aligned(list(columns), list(zip(*columns.values(), strict=True)))
        return about + table if self.classes else table


@guarded
def contributions(
    run: Run,
    train: Any,
    queries: Any = None,
    *,
    labels: Any = None,
    top: float = 0.1,
    among: Any = None,
    batch_size: BatchSize = "auto",
    progress: bool | None = None,
) -> Contributions:
    """What each checkpoint of a run adds to the scores, and what it ranks first.

    Early checkpoints find other examples than late ones (paper, section 4.2 and figure 8).

    [checkpoints, train] is held, in the model's precision; of the influence on `queries` only sums
    are.

    Args:
        run: Whose model, loss, and weighted checkpoints.
        train: The training examples.
        queries: Examples, to add up each checkpoint's positive and negative influence on them.
        labels: [train]; the class, or any group, of each example, to count in `mix`.
        top: The share of each checkpoint's ranking that is counted, above 0 and up to 1.
        among: [train], bool: count only these, such as the examples known to be mislabelled; the
            ranking is that of all examples.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        QueryError: top is no share, or labels or among are not one an example.
        NonFiniteError: A loss or gradient is NaN or infinite; names example and checkpoint.

    Example:
        >>> import torch, tracin
        >>> states = [{"weight": torch.full((1, 1), float(value))} for value in (0, 2)]
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> run = tracin.TracIn(model, "mse", states, learning_rates="equal")
        >>> train = torch.ones(3, 1), torch.tensor([0.0, 1.0, 2.0])
        >>> print(tracin.contributions(run, train, labels=["a", "b", "c"], top=0.3))
        classes among the first 1 of each checkpoint's ranking
        checkpoint    self-influence  share  class a  class b  class c
        checkpoint 0              20    0.5        0        0        1
        checkpoint 1              20    0.5        1        0        0
    """
    examples = open_examples(train, name="train")
    if not isinstance(top, int | float) or isinstance(top, bool) or not 0 < top <= 1:
        raise QueryError(
            f"top is a share of the examples, above 0 and up to 1; {top!r} was given. Write 10 % "
            "as 0.1."
        )
    groups = column(labels, len(examples), "labels")
    counted = column(among, len(examples), "among")
    if counted is not None and counted.dtype != np.bool_:
        raise QueryError(
            f"among marks examples by True and False; {counted.dtype} was given. Of positions "
            "make a mask: mask[positions] = True."
        )
    if counted is not None and groups is None:
        raise QueryError("among says which examples to count by label; give labels as well.")
    own, positive, negative = sums_of(run, examples, queries, checked_size(batch_size), progress)
    first = max(1, round(top * len(examples)))
    classes: tuple[Any, ...] = ()
    mix = np.zeros((len(run.checkpoints), 0), dtype=np.int64)
    if groups is not None:
        kinds, kind_of = np.unique(groups, return_inverse=True)
        classes = tuple(kinds.tolist())
        leaders = own.argsort(dim=1, descending=True, stable=True)[:, :first].numpy()
        mix = np.zeros((len(own), len(kinds)), dtype=np.int64)
        for at, ranked in enumerate(leaders):
            kept = ranked if counted is None else ranked[counted[ranked]]
            mix[at] = np.bincount(kind_of[kept], minlength=len(kinds))
    names = tuple(checkpoint.name for checkpoint in run.checkpoints)
    return Contributions(names, own, positive, negative, classes, mix, first)


def column(values: Any, examples: int, name: str) -> np.ndarray | None:
    """One value an example, as an array; None stays None."""
    if values is None:
        return None
    held = numbers(values) if isinstance(values, Tensor) else np.asarray(values)
    if held.shape != (examples,):
        raise QueryError(
            f"{name} has one value for each of the {examples} examples, [train]; the shape "
            f"{list(held.shape)} was given."
        )
    return held


@settled
def sums_of(
    run: Run, train: Any, queries: Any, batch_size: Size | None, progress: bool | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Self-influence by checkpoint, and the two sums of the influence on queries."""
    examples = open_data(run, train, "train")
    asked = None if queries is None else open_examples(queries, name="queries")
    count = len(run.checkpoints)
    own = torch.zeros(count, len(examples), dtype=score_dtype(run))
    walk = checkpoint_pass(run)
    everything = range(len(examples))
    if asked is None:
        for step in walk.steps(
            examples, everything, ScoreRequest(norms=True), batch_size, progress, "contributions"
        ):
            if step.norms is not None:
                own[step.checkpoint, step.rows] = step.norms.to(own)
        return own, None, None
    sums = torch.zeros(2, count, len(asked), dtype=torch.float64)
    question = ScoreRequest(asked, range(len(asked)), norms=True)
    for step in walk.steps(examples, everything, question, batch_size, progress, "contributions"):
        if step.norms is not None:
            own[step.checkpoint, step.rows] = step.norms.to(own)
        if step.scores is not None:
            scores = step.scores.detach().cpu().double()
            here = sums[:, step.checkpoint, step.queries.start : step.queries.stop]
            here[0] += scores.clamp(min=0).sum(0)
            here[1] += scores.clamp(max=0).sum(0)
    positive, negative = sums.to(score_dtype(run))
    return own, positive, negative
