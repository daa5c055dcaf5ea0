"""What one step on the first proponents does to a query's loss.

The tail patch of T. Chang et al., "Scalable influence and fact tracing for large language model
pretraining", 2024, https://arxiv.org/abs/2410.17413, with one step on the k examples together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tracin.analysis.given_scores import as_numbers
from tracin.baselines.baseline import check_run, checkpoint_number
from tracin.checkpoints import loaded
from tracin.checks import count_within
from tracin.data import content_of, move, open_examples
from tracin.errors import DataError, NonFiniteError, QueryError
from tracin.evaluate.query_mean import QueryMean, query_mean
from tracin.evaluate.randomised import traced_names
from tracin.guards import untouched
from tracin.losses import PerExampleLoss
from tracin.progress import bar
from tracin.results.table import aligned, numbers
from tracin.results.tabular import Tabular
from tracin.run import Run
from tracin.scoring.named_examples import examples_named
from tracin.sharding import device_of


@final
@dataclass(frozen=True, eq=False, repr=False)
class TailPatch(Tabular):
    """The drop of each query's loss after one step. Printing it gives a table.

    Attributes:
        k: How many examples a step was on.
        checkpoint: Where the step began.
        learning_rate: Its size.
        drop: The query's loss before a step on its first k proponents, minus the loss after.
        random: The same for k examples drawn at random.
        gain: The drop minus the random one, query by query.
    """

    k: int
    checkpoint: str
    learning_rate: float
    drop: QueryMean
    random: QueryMean
    gain: QueryMean

    def columns(self) -> dict[str, np.ndarray]:
        """One row per query."""
        return {
            "query": np.arange(len(self.drop.by_query)),
            "drop": numbers(self.drop.by_query),
            "random": numbers(self.random.by_query),
        }

    def __str__(self) -> str:
        rows = [
            (name, f"{each.value:.4g} [{each.low:.4g} {each.high:.4g}]")
            for name, each in (
                (f"first {self.k} proponents", self.drop),
                (f"{self.k} at random", self.random),
                ("difference", self.gain),
            )
        ]
        head = f"one step of size {self.learning_rate:g} from {self.checkpoint}"
        return f"{head}\n{aligned(['on', 'drop of the loss'], rows)}"


def tail_patch(
    run: Run,
    train: Any,
    queries: Any,
    scores: Any,
    k: int = 10,
    *,
    checkpoint: int = -1,
    learning_rate: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> TailPatch:
    """Take one gradient step on each query's first k proponents, and see what its loss does.

    The step goes down the mean gradient of the k examples, in eval mode, by plain gradient descent,
    on the run's parameters; nothing of it stays. It asks what a method's proponents would teach
    *more*, which is what plain TracIn measures to first order, so it favours that; compare it
    with an LDS, which asks what the data did.

    Args:
        run: The model, its loss and its checkpoints.
        train: The training examples.
        queries: The queries.
        scores: [train, queries], by any method.
        k: How many proponents to take.
        checkpoint: The place of the checkpoint in the run; the last by default.
        learning_rate: The step's size; None for the checkpoint's own.
        seed: Decides which examples are taken at random, for comparison.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        QueryError: k is no number of examples, there is no such checkpoint, no learning rate is
            known, or it is not positive.
        DataError: The scores do not fit.
        NonFiniteError: A loss is NaN or infinite after a step.

    Example:
        >>> import torch, tracin
        >>> from tracin.evaluate import tail_patch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> weights = {"weight": torch.zeros(1, 1)}
        >>> run = tracin.TracIn(model, "mse", [weights], learning_rates=[0.1])
        >>> train = torch.ones(2, 1), torch.tensor([1.0, -1.0])
        >>> query = torch.ones(1, 1), torch.tensor([1.0])
        >>> found = tail_patch(run, train, query, run.influence(train, query), k=1, learning_rate=0.1)
        >>> round(found.drop.value, 3)  # the weight goes from 0 to 0.2: 1 - 0.64
        0.36
    """  # noqa: E501
    check_run(run, "tail_patch")
    examples, asked = open_examples(train, name="train"), open_examples(queries, name="queries")
    values = as_numbers(scores, "scores")
    if tuple(values.shape) != (len(examples), len(asked)):
        raise DataError(
            f"scores are [train, queries], here {[len(examples), len(asked)]}; "
            f"{list(values.shape)} came."
        )
    count_within(
        k, len(examples), f"train holds {len(examples)} examples", QueryError, "proponents"
    )
    place = run.checkpoints[checkpoint_number(run, checkpoint)]
    size = _step_size(place.learning_rate if learning_rate is None else learning_rate)
    names = traced_names(run, examples)
    generator = torch.Generator().manual_seed(seed)
    first = values.topk(k, dim=0).indices.T.tolist()  # [queries, k]
    drops = torch.zeros(2, len(asked), dtype=torch.float64)
    with (
        bar(len(asked), "tail patch", progress) as shown,
        untouched(run.model),
        loaded(run.model, place, run.device),
    ):
        step = _Step(run.model, run.loss, names, size)
        device = device_of(run.model)
        for query, best in enumerate(first):
            batch = move(asked.take([query]), device)
            with examples_named(asked, [query], batch):
                before = step.loss({}, content_of(batch))
            drawn = torch.randperm(len(examples), generator=generator)[:k].tolist()
            for row, positions in enumerate((best, drawn)):
                chosen = move(examples.take(positions), device)
                with examples_named(examples, positions, chosen):
                    weights = step.after(content_of(chosen))
                drops[row, query] = before - step.loss(weights, content_of(batch))
            shown.update()
    _check_finite(drops, asked.ids)
    top, random = drops
    return TailPatch(
        k, place.name, size, query_mean(top), query_mean(random), query_mean(top - random)
    )


class _Step:
    """One step of gradient descent from the weights in a model, which stay as they are."""

    def __init__(
        self, model: nn.Module, loss: PerExampleLoss, names: Sequence[str], size: float
    ) -> None:
        known = dict(model.named_parameters())
        self._chosen = {name: known[name] for name in names}
        self._whole = _MeanLoss(model, loss)
        self._size = size

    def after(self, batch: Any) -> dict[str, Tensor]:
        """The weights after a step down the batch's mean loss."""
        with torch.enable_grad():
            loss = self._whole(batch)
            slopes = torch.autograd.grad(loss, list(self._chosen.values()), allow_unused=True)
        return {
            name: each.detach() if slope is None else each.detach() - self._size * slope
            for (name, each), slope in zip(self._chosen.items(), slopes, strict=True)
        }

    @torch.no_grad()
    def loss(self, weights: dict[str, Tensor], batch: Any) -> float:
        """The batch's mean loss under these weights."""
        given = {f"model.{name}": each for name, each in weights.items()}
        return float(functional_call(self._whole, given, (batch,)))


class _MeanLoss(nn.Module):
    """A model whose output is a mean loss: `functional_call` exchanges weights of modules alone."""

    def __init__(self, model: nn.Module, loss: PerExampleLoss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.model, batch).mean()


def _step_size(rate: Any) -> float:
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not is_number or not 0 < rate < float("inf"):
        came = "it has none" if rate is None else f"it is {rate!r}"
        raise QueryError(
            "A tail patch takes one step with the checkpoint's learning rate, one positive "
            f"number; {came}. Pass learning_rate=."
        )
    return float(rate)


def _check_finite(drops: Tensor, ids: np.ndarray) -> None:
    broken = (~drops.isfinite().all(0)).nonzero()
    if len(broken):
        raise NonFiniteError(
            f"The loss of query {ids[int(broken[0])]} is NaN or infinite after a step. Lower "
            "learning_rate."
        )
