"""Confident learning: cleanlab's scores and issues, on probabilities from here or elsewhere."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.baselines.baseline import check_run
from tracin.baselines.forward import class_steps
from tracin.baselines.suspect_scores import SuspectScores
from tracin.checks import one_of
from tracin.data import Examples
from tracin.errors import DataError, QueryError
from tracin.extras import install_line
from tracin.guards import guarded
from tracin.run import Run, open_data
from tracin.scoring.batch_size import BatchSize
from tracin.scoring.label_scores import probabilities_of

QUALITIES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
ROUNDING = 1e-3


@final
@dataclass(frozen=True, eq=False)
class ConfidentLearning:
    """One minus cleanlab's label quality, and its label issues; extra `cleanlab`.

    C. G. Northcutt, L. Jiang and I. L. Chuang, "Confident learning: estimating uncertainty in
    dataset labels", 2021, https://arxiv.org/abs/1911.00068. It is meant for probabilities of models
    that have not seen the example; `cross_validated` makes such. Without them it takes the mean of
    the run's own probabilities over its checkpoints, which training has pulled towards the labels.

    Args:
        run: The model, a loss that knows classes such as "cross_entropy", and the checkpoints.
        probabilities: [train, classes], in the order of the data; None for the run's own.
        quality: Which of cleanlab's scores: "self_confidence" (the label's probability),
            "normalized_margin" or "confidence_weighted_entropy".

    Raises:
        QueryError: There is no run, or an unknown quality.
        DataError: The probabilities are no table of probabilities.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import ConfidentLearning
        >>> weights = {"weight": torch.eye(2)}
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> run = tracin.TracIn(model, "cross_entropy", [weights], learning_rates="equal")
        >>> given = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
        >>> method = ConfidentLearning(run, given)
        >>> method.scores((torch.eye(3, 2), torch.tensor([0, 1, 1]))).values  # doctest: +SKIP
        array([0.1, 0.2, 0.7])
    """

    run: Run
    probabilities: Tensor | np.ndarray | None = None
    quality: str = "self_confidence"

    def __post_init__(self) -> None:
        check_run(self.run, "ConfidentLearning")
        one_of(self.quality, QUALITIES, "quality", QueryError)
        if self.probabilities is not None:
            _table(self.probabilities)

    @guarded
    def scores(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> SuspectScores:
        """One minus the quality of each label: [train]; high values are suspect.

        Args:
            train: The labelled examples.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            QueryError: cleanlab is not installed.
            DataError: The probabilities are of other data.
            LossError: The loss knows no classes, or an example has several labels.
        """
        rank = _cleanlab("rank")
        examples = open_data(self.run, train, "train")
        labels, probabilities = self._judged(examples, batch_size, progress)
        quality = rank.get_label_quality_scores(labels, probabilities, method=self.quality)
        values = 1 - np.asarray(quality, dtype=np.float64)
        return SuspectScores("ConfidentLearning", examples.ids, values)

    @guarded
    def issues(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> np.ndarray:
        """The examples whose label cleanlab takes for wrong: [train], bool.

        Args:
            train: The labelled examples.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            QueryError: cleanlab is not installed.
            DataError: The probabilities are of other data.
            LossError: The loss knows no classes, or an example has several labels.
        """
        filter_ = _cleanlab("filter")
        examples = open_data(self.run, train, "train")
        labels, probabilities = self._judged(examples, batch_size, progress)
        # One process: the data is small, and a notebook cannot always start others.
        return np.asarray(filter_.find_label_issues(labels, probabilities, n_jobs=1))

    def _judged(
        self, examples: Examples, batch_size: BatchSize, progress: bool | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels and probabilities."""
        given = None if self.probabilities is None else _table(self.probabilities)
        last = len(self.run.checkpoints) - 1
        # With probabilities given, the model is only asked for what the loss takes for labels.
        numbers = range(last + 1) if given is None else [last]
        labels = torch.zeros(len(examples), dtype=torch.int64)
        total: Tensor | None = None
        for step in class_steps(
            self.run, examples, numbers, "ConfidentLearning", batch_size, progress
        ):
            labels[step.rows] = step.outcome.labels.to(labels)
            if given is None:
                own = probabilities_of(step.outcome).cpu()
                total = own.new_zeros(len(examples), own.shape[1]) if total is None else total
                total[step.rows] += own / len(numbers)
        found = given if total is None else total.numpy()
        if found is None or len(found) != len(examples):
            rows = 0 if found is None else len(found)
            raise DataError(
                f"probabilities have one row per training example, in the order of the data; they "
                f"have {rows} rows, and train holds {len(examples)} examples."
            )
        if int(labels.max()) >= found.shape[1]:
            raise DataError(
                f"probabilities have one column per class, [train, classes]; they have "
                f"{found.shape[1]} columns, and there is a label {int(labels.max())}."
            )
        return labels.numpy(), found


def _table(probabilities: Any) -> np.ndarray:
    """The probabilities: [examples, classes], float64.

    Raises:
        DataError: They are none.
    """
    is_tensor = isinstance(probabilities, Tensor)
    table = np.asarray(
        probabilities.detach().cpu() if is_tensor else probabilities, dtype=np.float64
    )
    if table.ndim != 2:
        raise DataError(
            f"probabilities are a table [train, classes]; shape {table.shape} was given."
        )
    is_right = np.isfinite(table).all() and (table >= 0).all()
    if not is_right or not np.allclose(table.sum(1), 1, atol=ROUNDING):
        raise DataError(
            "probabilities are at least 0 and add up to 1 in each row; those given do not. Pass "
            "logits.softmax(1)."
        )
    return table


def _cleanlab(part: str) -> ModuleType:
    try:
        import cleanlab.filter
        import cleanlab.rank
    except ImportError as error:
        raise QueryError(
            f"ConfidentLearning needs cleanlab, which is not installed: {install_line('cleanlab')}."
        ) from error
    return cleanlab.filter if part == "filter" else cleanlab.rank
