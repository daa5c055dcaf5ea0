"""A handful of hard examples, made a larger set: those of a pool that help the model with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.analysis.model_pool import ModelPool
from tracin.analysis.plotting import axes_for
from tracin.analysis.pool import NORMALISED, Pool
from tracin.analysis.row_pool import RowPool
from tracin.checks import one_of, positive_int
from tracin.data import open_examples
from tracin.errors import DataError, QueryError
from tracin.guards import guarded
from tracin.index.index import Index
from tracin.progress import bar
from tracin.results.table import aligned, numbers
from tracin.results.tabular import Tabular
from tracin.run import Run, asked_of, open_data
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.scoring.targets import Target
from tracin.scoring.top_k import top_k

BLOCK = 2048  # candidates whose gradients are compared with each other at once
ROUNDING = 32  # units in the last place, by which the cosine of two equal gradients may miss 1
SHOWN = 10


@final
@dataclass(frozen=True, eq=False, repr=False)
class SelectedExamples(Tabular):
    """Examples of a pool that help with some targets, the best first. Printing it gives a table.

    Attributes:
        ids: [selected]; their ids.
        positions: [selected]; their positions in the pool.
        scores: [selected]; the influence on the targets, by which they were selected.
        groups: [selected]; the group of targets that each helps most.
        nearest: [selected]; the largest cosine with the gradient of a target or of an example
            selected before; NaN where duplicates were not looked for.
        dropped: Ids of the pool's examples left out as near-duplicates, and of what they are like;
            the latter starts with "target " for a target.
        budget: How many were asked for. Fewer come where no other example of the pool helps.
        pool: How many examples the pool has.
    """

    ids: np.ndarray
    positions: np.ndarray
    scores: Tensor
    groups: np.ndarray
    nearest: Tensor
    dropped: tuple[tuple[Any, str], ...]
    budget: int
    pool: int

    def __len__(self) -> int:
        return len(self.ids)

    def columns(self) -> dict[str, np.ndarray]:
        """One row per selected example."""
        return {
            "rank": np.arange(1, len(self) + 1),
            "id": self.ids,
            "position": self.positions,
            "score": numbers(self.scores),
            "group": self.groups,
            "nearest": numbers(self.nearest),
        }

    def plot(self, ax: Any = None) -> Any:
        """Draw the scores by rank; returns the matplotlib axes.

        Args:
            ax: Axes to draw on; None for a new figure.

        Raises:
            QueryError: matplotlib is not installed.
        """
        axes = axes_for(ax)
        axes.plot(np.arange(1, len(self) + 1), numbers(self.scores))
        axes.set_xlabel("selected examples, the best first")
        axes.set_ylabel("influence on the targets")
        return axes

    def __str__(self) -> str:
        columns = self.columns()
        columns.pop("position")
        if len(set(self.groups.tolist())) < 2:
            columns.pop("group")
        if bool(self.nearest.isnan().all()):
            columns.pop("nearest")
        rows = list(zip(*(each[:SHOWN].tolist() for each in columns.values()), strict=True))
        head = f"{len(self)} of {self.pool} examples selected"
        if len(self) < self.budget:
            head += f" (of {self.budget} asked for: no other helps)"
        if self.dropped:
            head += f", {len(self.dropped)} near-duplicates left out"
        more = f"\n... {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return f"{head}\n{aligned(list(columns), rows)}{more}"


@guarded
def select(
    run: Run | Index,
    pool: Any,
    targets: Any,
    budget: int = 100,
    *,
    groups: Sequence[Any] | None = None,
    normalise: str | None = None,
    duplicates: float | None = 0.98,
    target: Target | None = None,
    batch_size: BatchSize = "auto",
    progress: bool | None = None,
) -> SelectedExamples:
    """Select the examples of a pool whose training steps lower the loss of some targets most.

    A few hard examples become a larger set to label, to look at or to train on: X. Han and
    Y. Tsvetkov, "Fortifying toxic speech detectors against veiled toxicity", 2020,
    https://arxiv.org/abs/2010.03154 (paper, section 6). By groups of targets, an example counts for
    the group that it helps most: M. Xia et al., "LESS", 2024, https://arxiv.org/abs/2402.04333.
    Only examples with a positive score are selected.

    Near-duplicates are found by the cosine of the gradients over all checkpoints and traced
    parameters, as the run weighs them and without its preconditioner: what is alike to this model,
    under this label, without a feature extractor for each kind of data. Going down the ranking, an
    example that is too like a target or one selected before is left out, as A. Abbas et al. do with
    features: "SemDeDup", 2023, https://arxiv.org/abs/2303.09540. Each candidate is compared with
    all before it, in blocks of 2048, so the time of this step grows with the square of the budget:
    on MNIST with a small net it took half as long as the pass over a pool of 60,000 for a budget of
    1,000, and ten times as long for 10,000.

    With `tracin.Adam()`, groups that are validation sets and `normalise="checkpoint_cosine"`, the
    score is that of LESS (section 4.2), with Adam's second moments but without its momentum: the
    cosine of Adam's step on the example with the gradient of a validation set, averaged over
    checkpoints, the best of all sets. By an index the cosine is that of the example's plain
    gradient with the set's gradient times Adam's factors: the length of the step is not in the
    rows.

    Args:
        run: The model, its loss and its checkpoints; a `tracin.TracIn`. Or a `tracin.Index` with a
            run: its rows are the pool, and scores and cosines are estimated from them, so that the
            model sees the targets alone.
        pool: The examples to select from, with labels as the loss takes them; None for an index.
        targets: The examples to help with.
        budget: How many to select at most.
        groups: [targets]; which group each target belongs to, such as its class; None for one
            group. A pool example's score is its mean influence on a group, the best of groups.
        normalise: None for influence itself; "cosine" divides it by the lengths of the gradients of
            the example and of the group, so that loud examples and groups do not lead;
            "checkpoint_cosine" does so at each checkpoint, and takes the mean, weighted as the
            checkpoints are.
        duplicates: The cosine from which an example counts as a near-duplicate, up to 1, which
            leaves out exact copies; None to keep all.
        target: What selected examples raise, a number per target example, as `TracIn.explain` takes
            it, such as `tracin.Logit(3)`; None is for the loss of the targets, which they lower.
            Near-duplicates of a target are then those of its gradient by this number.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        QueryError: The budget, normalise or duplicates cannot be, no example helps, or an index
            comes with a pool or without a run; or target is none, or lengths are asked for under a
            preconditioner that is fitted on the data.
        LossError: target is about classes, and the loss tells none.
        DataError: groups does not have one entry per target.
        NonFiniteError: A loss or gradient is NaN or infinite.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> run = tracin.TracIn(model, "mse", [{"weight": torch.zeros(1, 2)}], learning_rates=[0.1])
        >>> pool = torch.eye(2).repeat(2, 1), torch.tensor([1.0, 1.0, 2.0, -1.0])
        >>> target = torch.tensor([[1.0, 0.5]]), torch.tensor([1.0])
        >>> print(tracin.select(run, pool, target, budget=3))
        2 of 4 examples selected (of 3 asked for: no other helps), 1 near-duplicates left out
        rank  id  score  nearest
           1   2    0.8   0.8944
           2   1    0.2   0.4472
    """
    positive_int(budget, "budget", QueryError)
    if normalise is not None:
        one_of(normalise, NORMALISED, "normalise", QueryError, also="None")
    limit = checked_cosine(duplicates)
    source = _pool_of(run, pool, targets, target, batch_size, progress)
    names, members = grouped(groups, len(source.target_ids))
    scores = source.influence(members, normalise)
    best, group = scores.max(1)
    order = top_k(best[None], len(best)).places[0]
    order = order[best[order] > 0]
    if not len(order):
        raise QueryError(
            f"None of the {len(source.ids)} examples of the pool has a positive influence on the "
            "targets: training on them would not help. Look at other targets, or another pool."
        )
    if limit is None:
        picked, nearest = order[:budget], torch.full((min(budget, len(order)),), torch.nan)
        dropped: tuple[tuple[Any, str], ...] = ()
    else:
        least = limit - ROUNDING * torch.finfo(source.dtype).eps
        walk = Deduplicated(source, least)
        with bar(min(budget, len(order)), "near-duplicates", progress) as shown:
            for step in walk.take(order, budget):
                shown.update(step)
        picked, nearest = torch.tensor(walk.picked), torch.tensor(walk.nearest)
        dropped = tuple(walk.dropped)
    places = picked.numpy()
    return SelectedExamples(
        source.ids[places],
        places,
        best[picked].to(source.dtype),
        names[group[picked].numpy()],
        nearest.double(),
        dropped,
        budget,
        len(source.ids),
    )


def _pool_of(
    run: Run | Index,
    pool: Any,
    targets: Any,
    target: Target | None,
    batch_size: BatchSize,
    progress: bool | None,
) -> Pool:
    given = open_examples(targets, name="targets")
    if isinstance(run, Index):
        if pool is not None:
            raise QueryError(
                "An index selects from its own rows, so the pool must be None: "
                "select(index, None, targets)."
            )
        return RowPool(run, given, target, batch_size, progress)
    examples = open_data(run, pool, "pool")
    asked = asked_of(run, given, target, checked_size(batch_size), progress)
    return ModelPool(run, examples, asked, batch_size, progress)


@final
class Deduplicated:
    """Goes down a ranking of the pool, and leaves out what is too like something before it.

    Args:
        pool: The ranked examples, and the targets, which no selected example may be too like.
        limit: The cosine from which two are too alike.

    Attributes:
        picked: Positions in the pool, in the order of the ranking.
        nearest: The largest cosine of each with a target or with one picked before.
        dropped: Id of each example left out, and the name of what it is like.
    """

    def __init__(self, pool: Pool, limit: float) -> None:
        self._pool, self._limit = pool, limit
        self._target_lengths = pool.target_squares()
        self.picked: list[int] = []
        self.nearest: list[float] = []
        self.dropped: list[tuple[Any, str]] = []
        self._picked_lengths: list[float] = []

    def take(self, order: Tensor, budget: int) -> Iterator[int]:
        """Go down the ranking until so many are picked; yields how many each block added."""
        start = 0
        while len(self.picked) < budget and start < len(order):
            # Most candidates are kept, so a block is little more than what is still missing.
            missing = budget - len(self.picked)
            size = min(BLOCK, missing + missing // 4 + 1)
            block = order[start : start + size].tolist()
            start += size
            before = len(self.picked)
            self._take_block(block, budget)
            yield len(self.picked) - before

    def _take_block(self, block: list[int], budget: int) -> None:
        own = self._pool.products(block, block)
        lengths = own.diagonal()
        most, whose = self._nearest_before(block, lengths)
        among = cosines(own, lengths, lengths).numpy()
        for at, position in enumerate(block):
            if len(self.picked) == budget:
                return
            if most[at] >= self._limit:
                self.dropped.append((self._pool.ids[position], self._name(int(whose[at]))))
                continue
            self.picked.append(position)
            self.nearest.append(float(most[at]))
            self._picked_lengths.append(float(lengths[at]))
            is_nearer = among[:, at] > most
            most[is_nearer], whose[is_nearer] = among[is_nearer, at], position

    def _nearest_before(self, block: list[int], lengths: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The largest cosine with a target or an example picked before, and with which: [block]."""
        most, whose = np.full(len(block), -np.inf), np.zeros(len(block), dtype=np.int64)
        for names, product, sizes in self._before(block):
            found = cosines(product, lengths, sizes).max(1)
            values = found.values.numpy()
            is_nearer = values > most
            most[is_nearer] = values[is_nearer]
            whose[is_nearer] = names[found.indices.numpy()][is_nearer]
        return most, whose

    def _before(self, block: list[int]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """What candidates are compared with, in parts: places, products, squared lengths.

        The place of a target is minus 1 minus its position, that of an example its position.
        """
        products = self._pool.target_products(block)
        yield -1 - np.arange(products.shape[1]), products, self._target_lengths
        for first in range(0, len(self.picked), BLOCK):
            part = self.picked[first : first + BLOCK]
            sizes = torch.tensor(self._picked_lengths[first : first + BLOCK], dtype=torch.float64)
            yield np.array(part), self._pool.products(block, part), sizes

    def _name(self, place: int) -> str:
        if place < 0:
            return f"target {self._pool.target_ids[-1 - place]}"
        return str(self._pool.ids[place])


def cosines(product: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """Products of gradients over their lengths; 0 where one has none.

    Args:
        product: [ours, theirs].
        ours: [ours]; squared lengths.
        theirs: [theirs]; squared lengths.
    """
    lengths = ours.clamp(min=0).sqrt()[:, None] * theirs.clamp(min=0).sqrt()
    return torch.where(lengths > 0, product / lengths, 0.0)


def grouped(groups: Sequence[Any] | None, targets: int) -> tuple[np.ndarray, list[Tensor]]:
    """The names of the groups, and the positions of each one's targets.

    Raises:
        DataError: There is not one entry per target, or they are of several kinds.
    """
    if groups is None:
        return np.array(["all"], dtype=object), [torch.arange(targets)]
    column = groups.detach().cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if column.shape != (targets,):
        raise DataError(
            f"groups has one entry for each of the {targets} targets; {list(column.shape)} was "
            "given. Leave it out to make all targets one group."
        )
    try:
        names, inverse = np.unique(column, return_inverse=True)
    except TypeError as error:
        raise DataError(
            f"groups holds names of one kind, all numbers or all texts ({error}). Name the group "
            "of every target."
        ) from error
    return names, [torch.from_numpy((inverse == at).nonzero()[0]) for at in range(len(names))]


def checked_cosine(limit: float | None) -> float | None:
    """The cosine from which two examples count as near-duplicates; None for never.

    Raises:
        QueryError: It is no such number.
    """
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if limit is not None and not (is_number and 0 < limit <= 1):
        raise QueryError(
            "duplicates is None or the cosine from which two gradients count as the same, above 0 "
            f"and up to 1; {limit!r} was given."
        )
    return limit
