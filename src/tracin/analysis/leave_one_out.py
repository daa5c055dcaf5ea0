"""What each example was worth, exactly: train again without it, and see the queries' losses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from tracin.analysis.arrays import cpu_tensor
from tracin.analysis.correlations import Correlations, correlations
from tracin.analysis.edited_data import kept_examples
from tracin.analysis.finished_cells import FinishedCells, checked_seeds, train_fingerprint
from tracin.analysis.given_scores import as_numbers
from tracin.analysis.intervals import SeedInterval, seed_interval, seeds_in_words
from tracin.analysis.plotting import axes_for
from tracin.analysis.seeded import seeded
from tracin.checks import is_int
from tracin.data import Examples, content_of, move, open_examples
from tracin.errors import NonFiniteError, QueryError
from tracin.files import bytes_of, fingerprint
from tracin.gradients.compute import checked_losses
from tracin.gradients.wording import worded
from tracin.guards import untouched
from tracin.guards.new_models import NewModels
from tracin.losses import PerExampleLoss, open_loss
from tracin.progress import bar
from tracin.results.table import aligned, numbers
from tracin.results.tabular import Tabular
from tracin.scoring.named_examples import examples_named
from tracin.sharding import device_of

BATCH = 256
SHOWN = 10


@final
@dataclass(frozen=True, eq=False, repr=False)
class LeaveOneOut(Tabular):
    """How the queries' losses change when examples are left out. Printing it gives a table.

    Attributes:
        ids: [examples]; the ids of those left out, one at a time.
        positions: [examples]; their positions in train.
        query_ids: [queries].
        seeds: One training each, per example.
        changes: [seeds, examples, queries]; the loss without the example minus the loss with it, by
            the same seed. Positive: the example helped, as a positive influence says.
    """

    ids: np.ndarray
    positions: np.ndarray
    query_ids: np.ndarray
    seeds: tuple[int, ...]
    changes: Tensor

    @property
    def change(self) -> SeedInterval:
        """The mean change over seeds with its 95 % interval by Student's t: [examples, queries]."""
        return seed_interval(self.changes.movedim(0, -1))

    def agreement(self, influence: Any) -> Correlations:
        """How well influence scores agree with the mean changes.

        Args:
            influence: [train, queries], as `TracIn.influence` returns it.

        Raises:
            QueryError: It has other queries, or fewer examples than train.
            NonFiniteError: A score is NaN.
        """
        scores = as_numbers(influence, "influence")
        queries = self.changes.shape[2]
        if scores.ndim != 2 or scores.shape[1] != queries or len(scores) <= self.positions.max():
            raise QueryError(
                f"influence is [train, queries], of all training examples and these {queries} "
                f"queries; {list(scores.shape)} came."
            )
        return correlations(scores[self.positions].double(), self.change.mean)

    def columns(self) -> dict[str, np.ndarray]:
        """One row per example and query: the mean change, and half its interval."""
        examples, queries = self.changes.shape[1:]
        return {
            "query": np.tile(self.query_ids, examples),
            "id": np.repeat(self.ids, queries),
            "position": np.repeat(self.positions, queries),
            "change": numbers(self.change.mean.flatten()),
            "change +-": numbers(self.change.half.flatten()),
        }

    def plot(self, ax: Any = None) -> Any:
        """Draw each query's changes by decreasing size, with intervals; returns the axes.

        Args:
            ax: Matplotlib axes to draw on; None for a new figure.

        Raises:
            QueryError: matplotlib is not installed.
        """
        axes = axes_for(ax)
        change = self.change
        for query, name in enumerate(self.query_ids):
            order = change.mean[:, query].argsort(descending=True)
            errors = None if change.seeds == 1 else change.half[order, query].numpy()
            axes.errorbar(
                np.arange(len(order)),
                change.mean[order, query].numpy(),
                errors,
                marker=".",
                label=f"query {name}",
            )
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xlabel("example left out, by rank")
        axes.set_ylabel("change of the query's loss")
        axes.legend()
        return axes

    def __str__(self) -> str:
        columns = self.columns()
        order = np.argsort(-np.abs(columns["change"]), kind="stable")[:SHOWN]
        names = ["query", "id", "change"] + (["change +-"] if len(self.seeds) > 1 else [])
        rows = list(zip(*(columns[name][order].tolist() for name in names), strict=True))
        head = f"change of the loss without the example, mean over {seeds_in_words(self.seeds)}"
        more = len(columns["change"]) - len(rows)
        return f"{head}\n{aligned(names, rows)}" + (f"\n... {more} more" if more else "")


def leave_one_out(
    train: Any,
    queries: Any,
    fit: Callable[[Any], Any],
    loss: str | PerExampleLoss,
    *,
    examples: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> LeaveOneOut:
    """Train again without each example, and measure how the queries' losses change.

    The plainest truth to compare influence with, for models that train in seconds: one training per
    example and seed, and one with all of them per seed. It answers another question than TracIn: of
    two copies each is worth nothing, since the other remains (paper, section 4.4). With minibatches
    one example fewer also changes which examples meet in a batch; average over several seeds, or
    train on full batches.

    The generators of Python, NumPy and torch are seeded before each training and put back after it.

    Args:
        train: The training examples: tensors in a tuple or dict, or a map-style dataset.
        queries: The examples whose losses are measured.
        fit: Trains a new model: fit(dataset) -> model.
        loss: As for `tracin.TracIn`; computed in eval mode.
        examples: Positions in train of the examples to leave out; None for all of them.
        seeds: One training each, per example.
        folder: Where each finished training is written, so that a re-run continues; None for
            nowhere.
        settings: What `fit` depends on, such as the learning rate: a folder made with others is
            refused.
        progress: None shows a bar on a terminal or in a notebook.

    Returns:
        The changes, [seeds, examples, queries].

    Raises:
        QueryError: A position or a seed cannot be, there is one example only, or `fit` returned no
            model, or one model twice.
        LossError: The loss returns no value per query.
        NonFiniteError: A loss is NaN or infinite.
        OutputError: The folder holds trainings with other settings or data.

    Example:
        >>> import torch
        >>> from tracin.analysis import leave_one_out
        >>> train = torch.ones(3, 1), torch.tensor([0.0, 0.0, 3.0])
        >>> def fit(data):  # least squares: predicts the mean
        ...     model = torch.nn.Linear(1, 1, bias=False)
        ...     model.weight.data.fill_(data[1].mean())
        ...     return model
        >>> query = torch.ones(1, 1), torch.tensor([3.0])
        >>> print(leave_one_out(train, query, fit, "mse"))
        change of the loss without the example, mean over 1 seed
        query  id  change
            0   2       5
            0   0   -1.75
            0   1   -1.75
    """
    opened, asked = open_examples(train, name="train"), open_examples(queries, name="queries")
    count = len(opened)
    positions = checked_positions(examples, count)
    each_seed, per_example = checked_seeds(seeds), open_loss(loss)
    own = {
        "loss": loss if isinstance(loss, str) else "a callable",
        "train": train_fingerprint(train),
        "queries": train_fingerprint(queries),
    }
    cells, models = FinishedCells(folder, "leave_one_out", own, settings), NewModels()

    def reached(kept: Tensor, seed: int) -> Tensor:
        def trained() -> list[float]:
            with seeded(seed):
                model = fit(kept_examples(train, kept))
            if not isinstance(model, Module):
                raise QueryError(
                    "fit(dataset) returns the trained model, a torch.nn.Module; it returned "
                    f"{type(model).__name__}."
                )
            models.check(model)
            return query_losses(model, per_example, asked)

        values = cells.values(fingerprint([bytes_of(kept)]), seed, trained)
        return torch.tensor(values, dtype=torch.float64)

    changes = torch.zeros(len(each_seed), len(positions), len(asked), dtype=torch.float64)
    everything = torch.arange(count)
    with bar(len(each_seed) * (len(positions) + 1), "leave one out", progress, "training") as shown:
        for at, seed in enumerate(each_seed):
            whole = reached(everything, seed)
            shown.update()
            for row, position in enumerate(positions):
                changes[at, row] = reached(everything[everything != position], seed) - whole
                shown.update()
    places = np.array(positions, dtype=np.int64)
    return LeaveOneOut(opened.ids[places], places, asked.ids, each_seed, changes)


def query_losses(model: Any, loss: PerExampleLoss, queries: Examples) -> list[float]:
    """The losses of a trained model, in eval mode; the model comes back as it was: [queries].

    Raises:
        LossError: The loss returns no value per query.
        NonFiniteError: One is NaN or infinite.
    """
    found: list[float] = []
    with untouched(model), torch.no_grad():
        model.eval()
        for positions, batch in queries.batches(BATCH):
            with examples_named(queries, positions, batch):
                losses = worded(loss)(model, content_of(move(batch, device_of(model))))
            found += checked_losses(losses, len(positions)).detach().cpu().double().tolist()
    broken = [at for at, each in enumerate(found) if not np.isfinite(each)]
    if broken:
        raise NonFiniteError(
            f"The loss of query {queries.ids[broken[0]]} is {found[broken[0]]} after a training: "
            "it diverged. Lower the learning rate, or leave the seed out."
        )
    return found


def checked_positions(examples: Sequence[int] | None, count: int) -> list[int]:
    """Positions of the examples to leave out, each once.

    Raises:
        QueryError: One is not in train, or comes twice, or none can be left out.
    """
    if count < 2:
        raise QueryError(f"train holds {count} example: without it there is nothing to train on.")
    if examples is None:
        return list(range(count))
    given: list[int] = cpu_tensor(examples).reshape(-1).tolist()
    if not given or not all(is_int(each, 0, count - 1) for each in given):
        raise QueryError(
            f"examples holds positions in train, from 0 to {count - 1}; {given!r} was given."
        )
    if len(set(given)) < len(given):
        raise QueryError(f"examples holds each position once; {given!r} was given.")
    return given
