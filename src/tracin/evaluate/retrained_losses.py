"""What models trained on parts of the data say of the queries: the truth that scores predict."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from tracin.analysis.arrays import cpu_tensor
from tracin.analysis.edited_data import kept_examples
from tracin.analysis.finished_cells import FinishedCells, checked_seeds, train_fingerprint
from tracin.analysis.intervals import seeds_in_words
from tracin.analysis.leave_one_out import query_losses
from tracin.analysis.seeded import seeded
from tracin.data import Examples, open_examples
from tracin.errors import NonFiniteError, QueryError
from tracin.evaluate.stacked_fit import StackedFit
from tracin.files import bytes_of, fingerprint
from tracin.losses import PerExampleLoss, open_loss
from tracin.progress import bar
from tracin.results.table import aligned, numbers
from tracin.results.tabular import Tabular

SHOWN = 5


@runtime_checkable
class FitsMany(Protocol):
    """Trains several models at once, as `StackedFit` does."""

    at_once: int

    def fit_many(
        self, train: Any, subsets: Sequence[Tensor] | Tensor, seeds: Sequence[int]
    ) -> list[Module]:
        """One trained model per subset and seed."""
        ...


@final
@dataclass(frozen=True, eq=False, repr=False)
class RetrainedLosses(Tabular):
    """The queries' losses in models trained on subsets. Printing it gives a table.

    Losses that were computed elsewhere come in as they are:
    `RetrainedLosses(subsets, losses, examples=2000)`.

    Attributes:
        subsets: Positions in train, one list per subset: int64 [subsets, kept], or a list of
            tensors of several lengths.
        losses: [subsets, seeds, queries]; each query's loss in the model that was trained on the
            subset with the seed.
        examples: How many training examples there are in all.

    Raises:
        QueryError: The shapes do not fit, or a position is not in train.
        NonFiniteError: A loss is NaN or infinite.
    """

    subsets: Sequence[Tensor] | Tensor
    losses: Tensor
    examples: int

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        shape = tuple(self.losses.shape)
        if len(shape) != 3 or shape[0] != len(self.subsets) or not self.losses.numel():
            raise QueryError(
                "losses is [subsets, seeds, queries], one row per subset; came "
                f"{list(shape)} for {len(self.subsets)} subsets."
            )
        if not bool(self.losses.isfinite().all()):
            raise NonFiniteError(
                "A retrained model's loss is NaN or infinite: that training diverged. Leave its "
                "seed out, or lower the learning rate."
            )
        for each in self.subsets:
            if not len(each) or int(each.min()) < 0 or int(each.max()) >= self.examples:
                raise QueryError(
                    f"subsets holds positions in train, from 0 to {self.examples - 1}, at least "
                    "one per subset; came one outside, or none."
                )

    @property
    def is_in(self) -> Tensor:
        """Which examples each subset holds: bool [subsets, train]."""
        found = torch.zeros(len(self.subsets), self.examples, dtype=torch.bool)
        for row, kept in zip(found, self.subsets, strict=True):
            row[kept] = True
        return found

    @property
    def mean(self) -> Tensor:
        """The mean over seeds: float64 [subsets, queries]."""
        return self.losses.double().mean(1)

    def columns(self) -> dict[str, np.ndarray]:
        """One row per subset, seed and query, all by their places."""
        places = np.indices(self.losses.shape)
        names = ("subset", "seed", "query")
        found = {name: each.ravel() for name, each in zip(names, places, strict=True)}
        return {**found, "loss": numbers(self.losses.flatten())}

    def __str__(self) -> str:
        subsets, seeds, queries = self.losses.shape
        mean = self.losses.double().mean(2)  # [subsets, seeds]
        rows = [(at, len(self.subsets[at]), float(mean[at].mean())) for at in range(subsets)][
            :SHOWN
        ]
        head = (
            f"losses of {queries} queries in models trained on {subsets} subsets of "
            f"{self.examples} examples with {seeds_in_words(range(seeds))}"
        )
        more = f"\n... {subsets - len(rows)} more subsets" if subsets > len(rows) else ""
        return f"{head}\n{aligned(['subset', 'examples', 'mean loss'], rows)}{more}"


def retrained_losses(
    train: Any,
    queries: Any,
    fit: Callable[[Any], Any] | FitsMany,
    loss: str | PerExampleLoss,
    subsets: Sequence[Tensor] | Tensor,
    *,
    seeds: Sequence[int] = (0, 1),
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> RetrainedLosses:
    """Train a model on each subset with each seed, and measure the queries' losses.

    Each subset is trained with the same seeds, so that first weights make no difference between
    them. Use other seeds than that of the model whose scores are judged: a score must predict what
    the data do, not what its own first weights do. Two seeds at least show how far the truth
    itself can be trusted (`LDS.ceiling`); four are better.

    Args:
        train: The training examples: tensors in a tuple or dict, or a map-style dataset.
        queries: The examples whose losses are measured.
        fit: Trains a new model: fit(dataset) -> model, the generators of Python, NumPy and torch
            being seeded before each call and put back after it. Or a `StackedFit`, which trains
            many small models at once.
        loss: As for `tracin.TracIn`; computed in eval mode.
        subsets: Positions in train, as `half_subsets` draws them: [subsets, kept].
        seeds: One training each, per subset.
        folder: Where each finished training is written, so that a re-run continues; None for
            nowhere.
        settings: What `fit` depends on, such as the learning rate: a folder made with others is
            refused. What a `StackedFit` was given is known without.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        QueryError: A position or a seed cannot be, or there is no subset.
        NonFiniteError: A loss is NaN or infinite.
        OutputError: The folder holds trainings with other settings or data.

    Example:
        >>> import torch
        >>> from tracin.evaluate import half_subsets, retrained_losses
        >>> train = torch.ones(4, 1), torch.tensor([0.0, 0.0, 3.0, 3.0])
        >>> def fit(data):  # least squares: predicts the mean
        ...     model = torch.nn.Linear(1, 1, bias=False)
        ...     model.weight.data.fill_(data[1].mean())
        ...     return model
        >>> query = torch.ones(1, 1), torch.tensor([3.0])
        >>> found = retrained_losses(train, query, fit, "mse", half_subsets(4, 3), seeds=(0,))
        >>> found.losses.shape
        torch.Size([3, 1, 1])
    """
    opened, asked = open_examples(train, name="train"), open_examples(queries, name="queries")
    per_example, each_seed = open_loss(loss), checked_seeds(seeds)
    chosen = _checked_subsets(subsets, len(opened))
    about = {
        "loss": loss if isinstance(loss, str) else "a callable",
        "train": train_fingerprint(train),
        "queries": train_fingerprint(queries),
    }
    if isinstance(fit, StackedFit):
        about["stacked_fit"] = fit.fingerprint
    cells = FinishedCells(folder, "retrained_losses", about, settings)
    names = [fingerprint([bytes_of(kept)]) for kept in chosen]
    jobs = [(at, seed) for at in range(len(chosen)) for seed in each_seed]
    found: dict[tuple[int, int], list[float]] = {}
    with bar(len(jobs), "retrain", progress, "training") as shown:
        missing = [job for job in jobs if not cells.has(names[job[0]], job[1])]
        for job in jobs:
            if cells.has(names[job[0]], job[1]):
                found[job] = cells.values(names[job[0]], job[1], list)
                shown.update()
        for job, losses in _trained(train, chosen, missing, fit, per_example, asked):
            found[job] = cells.values(names[job[0]], job[1], lambda known=losses: known)
            shown.update()
    _check_queries(found, len(asked))
    rows = torch.tensor([found[job] for job in jobs], dtype=torch.float64)
    shape = len(chosen), len(each_seed), len(asked)
    return RetrainedLosses(chosen, rows.reshape(shape), len(opened))


def _trained(
    train: Any,
    subsets: Sequence[Tensor],
    jobs: Sequence[tuple[int, int]],
    fit: Callable[[Any], Any] | FitsMany,
    loss: PerExampleLoss,
    queries: Examples,
) -> Iterator[tuple[tuple[int, int], list[float]]]:
    """The queries' losses after each training, as (subset, seed) and losses."""
    if not isinstance(fit, FitsMany):
        for at, seed in jobs:
            with seeded(seed):
                model = fit(kept_examples(train, subsets[at]))
            yield (at, seed), query_losses(model, loss, queries)
        return
    for group in _groups(subsets, jobs, fit.at_once):
        models = fit.fit_many(train, [subsets[at] for at, _ in group], [seed for _, seed in group])
        for job, model in zip(group, models, strict=True):
            yield job, query_losses(model, loss, queries)


def _groups(
    subsets: Sequence[Tensor], jobs: Sequence[tuple[int, int]], at_once: int
) -> Iterator[list[tuple[int, int]]]:
    """Runs of trainings on equally many examples, `at_once` at most."""
    sizes = sorted({len(subsets[at]) for at, _ in jobs})
    for size in sizes:
        alike = [job for job in jobs if len(subsets[job[0]]) == size]
        yield from (alike[at : at + at_once] for at in range(0, len(alike), at_once))


def _checked_subsets(subsets: Sequence[Tensor] | Tensor, examples: int) -> list[Tensor]:
    chosen = [cpu_tensor(each) for each in subsets]
    if not chosen:
        raise QueryError("At least one subset of train is needed; none was given.")
    for each in chosen:
        is_list = each.ndim == 1 and each.dtype == torch.int64 and len(each) > 0
        if not is_list or int(each.min()) < 0 or int(each.max()) >= examples:
            raise QueryError(
                f"A subset holds positions in train, whole numbers from 0 to {examples - 1}; came "
                f"{a_few(each)}. half_subsets({examples}, 100) draws some."
            )
        if len(each.unique()) < len(each):
            raise QueryError(f"A subset holds each position once; came {a_few(each)}.")
    return chosen


def a_few(values: Tensor) -> str:
    """The first numbers of a tensor, for a message."""
    flat = values.flatten().tolist()
    return f"{flat[:4]}" if len(flat) <= 4 else f"{flat[:4]} and {len(flat) - 4} more"


def _check_queries(found: Mapping[tuple[int, int], list[float]], queries: int) -> None:
    wrong = [job for job, losses in found.items() if len(losses) != queries]
    if wrong:
        raise QueryError(
            f"The loss gave {len(found[wrong[0]])} values for {queries} queries. It returns one "
            "value per example."
        )
