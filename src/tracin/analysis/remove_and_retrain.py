"""Remove the examples that a ranking puts first, train again, and see what is lost."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracin.analysis.edited_data import kept_examples
from tracin.analysis.finished_cells import (
    FinishedCells,
    checked_seeds,
    metric_value,
    train_fingerprint,
)
from tracin.analysis.retraining_curve import (
    RetrainingCurve,
    checked_fractions,
    inspection_order,
    named_scores,
)
from tracin.analysis.seeded import seeded
from tracin.data import open_examples
from tracin.errors import QueryError
from tracin.files import bytes_of, fingerprint
from tracin.guards.new_models import NewModels
from tracin.progress import bar

FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3)


def remove_and_retrain(
    train: Any,
    scores: Any,
    fit: Callable[[Any], Any],
    metric: Callable[[Any], float],
    *,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = (0,),
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> RetrainingCurve:
    """Leave out the top of each ranking, train again, and measure.

    With self-influence as scores and a test accuracy as metric: is the model better off without its
    suspects? With the influence on one query, `influence[:, 0]`, and the query's loss as metric: do
    its proponents matter? Always add a random ranking to compare with: less data alone changes a
    model. S. Hooker et al. introduced the scheme for features, "A benchmark for interpretability
    methods in deep neural networks", 2019, https://arxiv.org/abs/1806.10758.

    The generators of Python, NumPy and torch are seeded before each training and put back after it.
    Equal scores are removed in an order drawn with the seed.

    Args:
        train: The training examples: tensors in a tuple or dict, or a map-style dataset.
        scores: [train], the highest are removed first; or several rankings by name.
        fit: Trains a new model: fit(dataset) -> model, where dataset is a part of `train`.
        metric: Measures a model: metric(model) -> number.
        fractions: Shares of the ranking to remove, below 1.
        seeds: One training each, per fraction and ranking.
        folder: Where each finished training is written, so that a re-run continues; None for
            nowhere.
        settings: What `fit` and `metric` depend on, such as the learning rate: a folder made with
            others is refused.
        progress: None shows a bar on a terminal or in a notebook.

    Returns:
        The metric by ranking, fraction and seed.

    Raises:
        DataError: Scores and examples are not equally many.
        QueryError: A fraction, a seed, or what the metric returns cannot be, or `fit` returned one
            model twice.
        NonFiniteError: A score is NaN, or the metric returned NaN.
        OutputError: The folder holds trainings with other settings or data.

    Example:
        >>> import torch
        >>> from tracin.analysis import remove_and_retrain
        >>> train = torch.tensor([1.0, 2.0, 3.0, 10.0])
        >>> curve = remove_and_retrain(
        ...     train, train, fit=lambda data: data.mean(), metric=float, fractions=[0, 0.25, 0.5]
        ... )
        >>> curve.metric("scores").mean
        tensor([4.0000, 2.0000, 1.5000], dtype=torch.float64)
    """
    examples = len(open_examples(train, name="train"))
    chosen, each_seed = checked_fractions(fractions), checked_seeds(seeds)
    rankings = named_scores(scores, examples)
    if round(chosen[-1] * examples) == examples:
        raise QueryError(
            f"At fraction {chosen[-1]:g} no example is left to train on. Give fractions that leave "
            f"some of the {examples}."
        )
    own = {"train": train_fingerprint(train)}
    cells, models = FinishedCells(folder, "remove_and_retrain", own, settings), NewModels()

    def reached(kept: Tensor, seed: int) -> float:
        def trained() -> list[float]:
            with seeded(seed):
                model = fit(kept_examples(train, kept))
                models.check(model)
                return [metric_value(metric(model))]

        return cells.values(fingerprint([bytes_of(kept)]), seed, trained)[0]

    values = torch.zeros(len(rankings), len(chosen), len(each_seed), dtype=torch.float64)
    changed = torch.zeros_like(values, dtype=torch.int64)
    with bar(values.numel(), "remove and retrain", progress, "training") as shown:
        for at, seed in enumerate(each_seed):
            for row, ranking in enumerate(rankings.values()):
                order = inspection_order(ranking, seed)
                for column, share in enumerate(chosen):
                    removed = round(share * examples)
                    changed[row, column, at] = removed
                    # In the data's order: what is left is the data, not the ranking.
                    values[row, column, at] = reached(order[removed:].sort().values, seed)
                    shown.update()
    return RetrainingCurve(
        tuple(rankings), chosen, each_seed, values, changed, None, "examples removed"
    )
