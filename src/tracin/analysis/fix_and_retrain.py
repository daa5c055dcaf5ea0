"""Fix the labels that a ranking puts first, train again, and see what it is worth (figure 1a)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracin.analysis.edited_data import relabelled_examples
from tracin.analysis.finished_cells import (
    FinishedCells,
    checked_seeds,
    metric_value,
    train_fingerprint,
)
from tracin.analysis.noise import NoisyLabels
from tracin.analysis.retraining_curve import (
    RetrainingCurve,
    checked_fractions,
    inspection_order,
    named_scores,
)
from tracin.analysis.seeded import seeded
from tracin.errors import DataError
from tracin.files import bytes_of, fingerprint
from tracin.guards.new_models import NewModels
from tracin.plain_text import a_kind
from tracin.progress import bar

FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3)


def fix_and_retrain(
    train: Any,
    noisy: NoisyLabels,
    scores: Any,
    fit: Callable[[Any], Any],
    metric: Callable[[Any], float],
    *,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = (0,),
    key: int | str = 1,
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> RetrainingCurve:
    """Put right the labels in the top of each ranking, train again, and measure (paper, figure 1a).

    The generators of Python, NumPy and torch are seeded before each training and put back after it.
    Equal scores are inspected in an order drawn with the seed. Trainings on the same labels with the
    same seed, such as those at fraction 0, are done once for all rankings.

    Args:
        train: The training examples: tensors in a tuple or dict, or a map-style dataset. Its labels
            are not used: those of `noisy` are.
        noisy: The planted wrong labels, with the truth.
        scores: [train], high is suspect; or several rankings by name, `{"TracIn": ..., "loss": ...}`.
        fit: Trains a new model: fit(dataset) -> model, where dataset is `train` under other labels.
        metric: Measures a model: metric(model) -> number, such as the accuracy on test data.
        fractions: Shares of the ranking to inspect.
        seeds: One training each, per fraction and ranking.
        key: Where an example has its label: the place in a tuple, or the key in a dict.
        folder: Where each finished training is written, so that a re-run continues; None for
            nowhere.
        settings: What `fit` and `metric` depend on, such as the learning rate: a folder made with
            others is refused, and the library cannot see into your functions.
        progress: None shows a bar on a terminal or in a notebook.

    Returns:
        The metric by ranking, fraction and seed, and with every label right.

    Raises:
        DataError: Scores, labels and examples are not equally many, or there is no label at `key`.
        QueryError: A fraction, a seed, or what the metric returns cannot be, or `fit` returned one
            model twice.
        NonFiniteError: A score is NaN, or the metric returned NaN.
        OutputError: The folder holds trainings with other settings or data.

    Example:
        >>> import torch
        >>> from tracin.analysis import UniformWrong, fix_and_retrain, noisy_labels
        >>> train = torch.arange(8.0), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> noisy = noisy_labels(train[1], UniformWrong(2), fraction=0.25, seed=0)
        >>> def fit(data):  # a "model" that knows the labels that it was given
        ...     return data[1]
        >>> def metric(labels):
        ...     return (labels == train[1]).double().mean()
        >>> best = noisy.is_noisy.double()
        >>> print(fix_and_retrain(train, noisy, {"best": best}, fit, metric, fractions=[0, 0.25]))
        labels put right, then trained again with 1 seed; +- is a 95 % interval over seeds, by Student's t
        ranking  fraction  changed  metric
        best     0 %             0  0.7500
        best     25 %            2  1.0000
        every label right: 1.0000
    """  # noqa: E501
    chosen, each_seed = checked_fractions(fractions), checked_seeds(seeds)
    if not isinstance(noisy, NoisyLabels):
        raise DataError(
            "noisy is what noisy_labels returns, the labels with the truth; "
            f"{a_kind(noisy)} was given."
        )
    rankings = named_scores(scores, len(noisy))
    whole = train_fingerprint(relabelled_examples(train, noisy.right, key))
    own = {"train": whole, "key": key}
    cells, models = FinishedCells(folder, "fix_and_retrain", own, settings), NewModels()

    def reached(labels: Tensor, seed: int) -> float:
        def trained() -> list[float]:
            with seeded(seed):
                model = fit(relabelled_examples(train, labels, key))
                models.check(model)
                return [metric_value(metric(model))]

        return cells.values(fingerprint([bytes_of(labels)]), seed, trained)[0]

    values = torch.zeros(len(rankings), len(chosen), len(each_seed), dtype=torch.float64)
    changed = torch.zeros_like(values, dtype=torch.int64)
    limit = torch.zeros(len(each_seed), dtype=torch.float64)
    with bar(values.numel() + len(limit), "fix and retrain", progress, "training") as shown:
        for at, seed in enumerate(each_seed):
            for row, ranking in enumerate(rankings.values()):
                order = inspection_order(ranking, seed)
                for column, share in enumerate(chosen):
                    inspected = order[: round(share * len(order))]
                    changed[row, column, at] = int(noisy.is_noisy[inspected].sum())
                    values[row, column, at] = reached(noisy.fixed(inspected), seed)
                    shown.update()
            limit[at] = reached(noisy.right, seed)
            shown.update()
    return RetrainingCurve(
        tuple(rankings), chosen, each_seed, values, changed, limit, "labels put right"
    )
