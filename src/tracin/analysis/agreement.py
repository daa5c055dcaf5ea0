"""How the influence of a sample changes with the choice of checkpoints."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from tracin.analysis.correlations import Correlations, correlations
from tracin.analysis.selection import Selection, Weight, largest
from tracin.checkpoints import checkpoint_weights
from tracin.checkpoints.discover import identity
from tracin.data import open_examples
from tracin.errors import CheckpointWarning, LearningRateError, QueryError
from tracin.losses import PerExampleLoss
from tracin.preconditioners.trained_with_adam import plain_on_purpose
from tracin.results.table import aligned
from tracin.results.tabular import Tabular
from tracin.scoring.batch_size import BatchSize
from tracin.scoring.parameters import Selection as Parameters
from tracin.tracin import TracIn


@final
@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Tabular):
    """How near each of several selections comes to a reference. Printing it gives a table.

    Attributes:
        selections: What was compared, by name.
        correlations: Each one's agreement with the reference, pooled and per query.
    """

    selections: Mapping[str, Selection]
    correlations: Mapping[str, Correlations]

    def __getitem__(self, name: str) -> Correlations:
        return self.correlations[name]

    def columns(self) -> dict[str, np.ndarray]:
        """One row a selection: how many checkpoints, and its three correlations."""
        told = list(self.correlations.values())
        return {
            "selection": np.array(list(self.correlations), dtype=object),
            "checkpoints": np.array([len(each) for each in self.selections.values()]),
            "pooled r": np.array([each.pooled for each in told]),
            "mean per-query r": np.array([each.per_query for each in told]),
            "mean per-query rank r": np.array([each.ranks_per_query for each in told]),
        }

    def __str__(self) -> str:
        columns = self.columns()
        return aligned(list(columns), list(zip(*columns.values(), strict=True)))


def compare_selections(
    model: Module,
    loss: str | PerExampleLoss,
    selections: Mapping[str, Selection],
    train: Any,
    queries: Any,
    reference: Tensor | None = None,
    *,
    parameters: Parameters = None,
    device: torch.device | str | None = None,
    batch_size: BatchSize = "auto",
    progress: bool | None = None,
) -> Agreement:
    """How the influence of `train` on `queries` changes with the choice of checkpoints.

    Each is compared with the reference in two ways that can disagree, so both are given: Pearson's
    r *pooled* over all pairs, which loud queries decide, and the mean over queries of the r (and
    of the rank correlation) that each query has by itself. Per query is what counts where every
    query gets a list of its own; pooled where scores of several queries are compared or added.

    Scores are sums over checkpoints, so gradients are computed once at each checkpoint that is
    used at all, and only reweighted for each selection. [selections + 1, train, queries] is held.

    Args:
        model: The model that was trained.
        loss: As for `tracin.TracIn`.
        selections: What to compare, by the names to call them.
        train: The training examples, or a part of them.
        queries: The examples whose loss is explained.
        reference: [train, queries]; by default the influence with all the checkpoints that the
            first selection was chosen from, by their spans.
        parameters: As for `tracin.TracIn`.
        device: Where to compute; by default where the model is.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        QueryError: There is no selection, or the reference has another shape.
        LearningRateError: There is no step log for the default reference.
        NonFiniteError: A loss or gradient is NaN or infinite.
    """
    if not selections:
        raise QueryError("At least one selection is needed to compare; none was given.")
    plans = {
        name: list(zip(each.checkpoints, each.weights, strict=True))
        for name, each in selections.items()
    }
    terms = [(at, *term) for at, plan in enumerate(plans.values()) for term in plan]
    if reference is None:
        first = next(iter(selections.values()))
        terms += [(len(plans), *term) for term in zip(first.among, all_spans(first), strict=True)]
    examples, asked = open_examples(train, name="train"), open_examples(queries, name="queries")
    shape = len(examples), len(asked)
    if reference is not None and tuple(reference.shape) != shape:
        raise QueryError(
            f"reference is [train, queries], here {list(shape)}; {list(reference.shape)} was given."
        )
    # What is to be computed once, and where it goes: {key: (run, [(total, scale), ...])}.
    needed: dict[Any, tuple[TracIn, list[tuple[int, float]]]] = {}
    for at, checkpoint, weight in terms:
        scale, direction = scaled(weight)
        if not scale:
            continue
        parts = tuple(sorted(direction.items())) if isinstance(direction, dict) else ()
        key = identity(checkpoint), parts
        if key not in needed:
            with plain_on_purpose():
                run = TracIn(
                    model,
                    loss,
                    [checkpoint],
                    parameters=parameters,
                    learning_rates=[direction],
                    device=device,
                )
            needed[key] = run, []
        needed[key][1].append((at, scale))
    totals: Tensor | None = None
    for run, uses in needed.values():
        scores = run.influence(examples, asked, batch_size=batch_size, progress=progress)
        if totals is None:
            totals = scores.new_zeros(len(plans) + (reference is None), *shape)
        for at, scale in uses:
            totals[at].add_(scores, alpha=scale)
    if totals is None:
        raise QueryError("Every checkpoint of the selections weighs 0. Choose others.")
    target = totals[-1] if reference is None else reference
    told = {name: correlations(totals[at], target) for at, name in enumerate(plans)}
    return Agreement(dict(selections), told)


def all_spans(selection: Selection) -> list[Weight]:
    """The spans of all the checkpoints that a selection was made from."""
    with warnings.catch_warnings():
        # One that stands for no step is not computed here.
        warnings.simplefilter("ignore", CheckpointWarning)
        try:
            return checkpoint_weights(selection.among, "span")
        except LearningRateError as error:
            raise LearningRateError(
                "By default selections are compared with all checkpoints, weighted by their "
                f"spans, and these are not known. {error} Or give reference=[train, queries]."
            ) from error


def scaled(weight: Weight) -> tuple[float, Weight]:
    """A weight as a number times one that weights of other spans share."""
    if not isinstance(weight, dict):
        return weight, 1.0
    most = largest(weight)
    return most, {name: round(each / most, 12) for name, each in weight.items()} if most else 1.0
