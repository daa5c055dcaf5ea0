"""Representer points: a class score as a sum over training examples."""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.baselines.baseline import check_run, checkpoint_number
from tracin.baselines.last_layer import Features, LastLinear, features_of, last_linear
from tracin.baselines.suspect_scores import SuspectScores
from tracin.checks import positive_int
from tracin.data import open_examples
from tracin.errors import CurvatureError, LossError, QueryError, UnsupportedModelError
from tracin.guards import guarded
from tracin.run import HELD, Run, open_data
from tracin.scoring.batch_size import BatchSize

NAME = "RepresenterPoints"
ROUNDING = 1e-3  # of float32 models: the largest relative difference of what must be equal
MEMORY = 20  # gradients that L-BFGS remembers


@final
@dataclass(frozen=True, eq=False)
class RepresenterPoints:
    """How much each training example adds to a query's class score.

    C.-K. Yeh, J. S. Kim, I. E. H. Yen and P. Ravikumar, "Representer point selection for explaining
    deep neural networks", 2018, https://arxiv.org/abs/1811.09720. The last layer is trained to a
    stationary point of (mean cross-entropy + l2 x squared weights); there the scores of classes are
    the sum over examples of alpha x (features . features), with alpha = -(derivative of the
    example's loss by its scores) / (2 l2 n). The bias is a weight of the feature 1, under the same
    penalty. The rest of the model, and the user's own last layer, stay as they are. All features
    are held: examples x features x 8 bytes.

    Args:
        run: The model, cross-entropy, and the checkpoints; the last layer is a `torch.nn.Linear`
            whose outputs are the class scores.
        l2: The penalty, above 0. A small one needs more steps.
        checkpoint: The place of the checkpoint in the run; the last by default.
        steps: The most steps of L-BFGS.
        tolerance: How far sums may be from the scores, relative to the largest score.

    Raises:
        QueryError: There is no run or no such checkpoint, or an argument is out of range.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import RepresenterPoints
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> weights = {"weight": torch.eye(2)}
        >>> run = tracin.TracIn(model, "cross_entropy", [weights], learning_rates="equal")
        >>> train = torch.eye(2), torch.tensor([0, 1])
        >>> RepresenterPoints(run, l2=0.1).influence(train, train).sign()
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """

    run: Run
    l2: float = 1e-3
    checkpoint: int = -1
    steps: int = 2000
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_run(self.run, NAME)
        checkpoint_number(self.run, self.checkpoint)
        positive_int(self.steps, "steps", QueryError)
        for name, value in (("l2", self.l2), ("tolerance", self.tolerance)):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not (value > 0 and math.isfinite(value)):
                raise QueryError(f"{name} is a number above 0; {value!r} was given.")

    @guarded
    def fit(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> "FittedRepresenters":
        """Train the last layer and take it apart, once for any number of questions.

        Args:
            train: The labelled examples that the model was trained on.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            CurvatureError: No stationary point was reached, so that the sums are not the scores.
            LossError: The loss is no plain cross-entropy of one label per example.
            UnsupportedModelError: The last layer is no `torch.nn.Linear`, or what it gives are not
                the class scores.
        """
        examples = open_data(self.run, train, "train")
        number = checkpoint_number(self.run, self.checkpoint)
        layer = last_linear(self.run, examples, NAME)
        found = features_of(self.run, layer, examples, number, NAME, batch_size, progress)
        has_bias = layer.module.bias is not None
        inputs = _with_one(found.inputs, has_bias)
        _refuse_other_scores(found, layer)
        _refuse_other_losses(found)
        # The objective is convex: wherever the search begins, it ends at the same weights.
        weights = inputs.new_zeros(found.logits.shape[1], inputs.shape[1])
        weights = _stationary(weights, inputs, found.labels, self.l2, self.steps)
        alpha = _alpha(weights, inputs, found.labels, self.l2)
        gap = float((inputs @ (weights - alpha.mT @ inputs).mT).abs().max())
        size = float((inputs @ weights.mT).abs().max())
        if not gap <= self.tolerance * size:
            raise CurvatureError(
                f"The last layer is not at a stationary point after {self.steps} steps: the sums "
                f"over training examples miss the class scores by {gap:.2g}, and the largest score "
                f"is {size:.2g}. Pass a larger l2 than {self.l2:g}, or more `steps`."
            )
        return FittedRepresenters(self.run, number, layer, weights, alpha, inputs, found.labels,
                                  examples.ids)  # fmt: skip

    def scores(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> SuspectScores:
        """How much each example must pull the score of its own label, alpha's size: [train].

        Args:
            train: The labelled examples that the model was trained on.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            CurvatureError: No stationary point was reached.
            LossError: The loss is no plain cross-entropy of one label per example.
            UnsupportedModelError: The last layer does not fit.
        """
        return self.fit(train, batch_size=batch_size, progress=progress).scores()

    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """What each example adds to the score of each query's label: [train, queries], float64.

        Positive: it raises the score. This explains the score before the softmax, not the loss.

        Args:
            train: The labelled examples that the model was trained on.
            queries: The labelled examples whose score is explained.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            CurvatureError: No stationary point was reached.
            LossError: The loss is no plain cross-entropy of one label per example.
            UnsupportedModelError: The last layer does not fit.
        """
        fitted = self.fit(train, batch_size=batch_size, progress=progress)
        return fitted.influence(queries, batch_size=batch_size, progress=progress)


@final
@dataclass(frozen=True, eq=False)
class FittedRepresenters:
    """A last layer at a stationary point and its parts; `RepresenterPoints.fit`.

    Attributes:
        run: The model and its checkpoints.
        checkpoint: The place of the checkpoint in the run.
        layer: The last layer, whose own weights are not used.
        weights: [classes, features], the last of them for the bias if there is one.
        alpha: [train, classes].
        inputs: [train, features], with a 1 at the end if there is a bias.
        labels: [train].
        ids: [train]: the examples' ids.
    """

    run: Run
    checkpoint: int
    layer: LastLinear
    weights: Tensor
    alpha: Tensor
    inputs: Tensor
    labels: Tensor
    ids: Any

    def scores(self) -> SuspectScores:
        """How much each example must pull the score of its own label, alpha's size: [train]."""
        own = self.alpha.gather(1, self.labels[:, None])[:, 0].abs()
        return SuspectScores(NAME, self.ids, own.numpy())

    @guarded
    def influence(
        self, queries: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> Tensor:
        """What each example adds to the score of each query's label: [train, queries], float64.

        Args:
            queries: The labelled examples whose score is explained.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.
        """
        asked = self._asked(queries, batch_size, progress)
        return self.alpha[:, asked.labels] * (self.inputs @ self._inputs(asked).mT)

    @guarded
    def logits(
        self, queries: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> Tensor:
        """The class scores of the layer at its stationary point: [queries, classes], float64.

        Those of `influence`, over all training examples, add up to them.

        Args:
            queries: The labelled examples.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.
        """
        return self._inputs(self._asked(queries, batch_size, progress)) @ self.weights.mT

    def _asked(self, queries: Any, batch_size: BatchSize, progress: bool | None) -> Features:
        examples = open_examples(queries, name="queries")
        return features_of(
            self.run, self.layer, examples, self.checkpoint, NAME, batch_size, progress
        )

    def _inputs(self, asked: Features) -> Tensor:
        return _with_one(asked.inputs, self.layer.module.bias is not None)


def _with_one(inputs: Tensor, has_bias: bool) -> Tensor:
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1) if has_bias else inputs


def _refuse_other_scores(found: Features, layer: LastLinear) -> None:
    if not found.gap <= ROUNDING * float(found.logits.abs().max()):
        raise UnsupportedModelError(
            f"{NAME} takes class scores apart that the last layer gives as they are, but those of "
            f"this model are not the outputs of {layer.name}. Move what follows the layer into the "
            "loss, or use InfluenceFunctions."
        )


def _refuse_other_losses(found: Features) -> None:
    wanted = F.cross_entropy(found.logits, found.labels, reduction="none")
    if not torch.allclose(wanted, found.losses, rtol=ROUNDING, atol=ROUNDING):
        raise LossError(
            f"{NAME} trains the last layer by cross-entropy, and this loss gives other values: "
            f"{float(found.losses[0]):.4g} for the first example, where cross-entropy is "
            f'{float(wanted[0]):.4g}. Use loss="cross_entropy", or InfluenceFunctions.'
        )


def _stationary(weights: Tensor, inputs: Tensor, labels: Tensor, l2: float, steps: int) -> Tensor:
    """Weights at which the regularised loss is flat, by full-batch L-BFGS."""
    weights = weights.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=steps,
        max_eval=2 * steps,
        history_size=MEMORY,
        tolerance_grad=1e-12,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        value, gradient = _objective(weights.detach(), inputs, labels, l2)
        weights.grad = gradient
        return value

    optimizer.step(closure)
    return weights.detach()


def _objective(weights: Tensor, inputs: Tensor, labels: Tensor, l2: float) -> tuple[float, Tensor]:
    """The regularised loss and its gradient, block by block of examples."""
    value, gradient = l2 * float(weights.square().sum()), 2 * l2 * weights
    step = max(1, HELD // (4 * len(weights)))
    for start in range(0, len(inputs), step):
        some, theirs = inputs[start : start + step], labels[start : start + step]
        logits = some @ weights.mT
        value += float(F.cross_entropy(logits, theirs, reduction="sum")) / len(inputs)
        gradient += _errors(logits, theirs).mT @ some / len(inputs)
    return value, gradient


def _errors(logits: Tensor, labels: Tensor) -> Tensor:
    """The derivative of each loss by its scores: probabilities - one-hot, [examples, classes]."""
    return logits.softmax(1) - F.one_hot(labels, logits.shape[1])


def _alpha(weights: Tensor, inputs: Tensor, labels: Tensor, l2: float) -> Tensor:
    return _errors(inputs @ weights.mT, labels) / (-2 * l2 * len(inputs))
