"""The ways of scoring that an evaluation compares: TracIn's variants, and what they must beat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tracin.baselines import BM25, Loss, NearestNeighbours, RandomScores
from tracin.baselines.baseline import HasInfluence
from tracin.baselines.last_layer import last_linear
from tracin.data import open_examples
from tracin.errors import CheckpointError, LossError, TracInError, UnsupportedModelError
from tracin.evaluate.randomised import run_like, traced_names
from tracin.preconditioners import KFAC, Adam
from tracin.run import Run
from tracin.scoring.batch_size import BatchSize
from tracin.tracin import TracIn


@final
@dataclass(frozen=True, eq=False)
class Method:
    """A way to score training examples, for an evaluation.

    Attributes:
        name: What tables call it.
        advice: What to write to have it, such as "preconditioner=tracin.KFAC()".
        build: Gives it for a run: build(run) -> an object with `influence(train, queries)`.
        reads_model: Whether it looks at the model; shuffling weights says something of it then.
        reads_texts: Whether it takes texts in place of the data.

    Example:
        >>> from tracin.baselines import Loss
        >>> from tracin.evaluate import Method
        >>> Method("loss", "tracin.baselines.Loss(run)", Loss).name
        'loss'
    """

    name: str
    advice: str
    build: Callable[[TracIn], HasInfluence]
    reads_model: bool = True
    reads_texts: bool = False


@final
@dataclass(frozen=True, eq=False)
class CosineScores:
    """Influence divided by the lengths of both gradients, over all checkpoints.

    Args:
        run: The run.

    Example:
        >>> import torch, tracin
        >>> from tracin.evaluate.methods import CosineScores
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> run = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates="equal")
        >>> data = torch.eye(2), torch.tensor([5.0, 5.0])
        >>> CosineScores(run).influence(data, data).round(decimals=3)
        tensor([[1., 0.],
                [0., 1.]])
    """

    run: TracIn

    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """The cosine of the gradients of each example and each query: [train, queries].

        Args:
            train: The training examples.
            queries: The queries.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.
        """
        scores = self.run.influence(train, queries, batch_size=batch_size, progress=progress)
        ours, theirs = (
            self.run.self_influence(data, batch_size=batch_size, progress=progress).sqrt()
            for data in (train, queries)
        )
        lengths = ours[:, None] * theirs
        return torch.where(lengths > 0, scores / lengths, 0.0)


def standard_methods(run: Run, train: Any, *, has_texts: bool = False) -> list[Method]:
    """Those that fit a run: TracIn's variants, then random scores, the loss, and likeness.

    Adam's moments are used where every checkpoint has them, features where the model ends in a
    linear layer and the loss knows classes, BM25 where there are texts.

    Args:
        run: The model, its loss and its checkpoints.
        train: The training examples, which K-FAC takes its curvature from.
        has_texts: Whether the examples' texts are known.

    Example:
        >>> import torch, tracin
        >>> from tracin.evaluate import standard_methods
        >>> model = torch.nn.Linear(2, 2)
        >>> run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[0.1])
        >>> train = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
        >>> [method.name for method in standard_methods(run, train)]
        ['TracIn', 'cosine', 'KFAC', 'random', 'loss', 'feature cosine']
    """
    names = traced_names(run, open_examples(train, name="train"))

    def variant(preconditioner: Any, *, only_last: bool = False) -> Callable[[TracIn], TracIn]:
        # K-FAC has its own rule: every checkpoint weighs the same.
        follows = getattr(preconditioner, "follows_training", True)

        def build(given: TracIn) -> TracIn:
            kept = slice(-1, None) if only_last else slice(None)
            weights = given.weights[kept] if follows else "equal"
            return run_like(given, given.checkpoints[kept], weights, preconditioner, names)

        return build

    curvature = KFAC(fit=train)
    several = len(run.checkpoints) > 1
    found = [Method("TracIn", "no preconditioner", variant(None))]
    if several:
        last = "the last checkpoint alone"
        found.append(Method("TracIn, last", last, variant(None, only_last=True)))
    plain = variant(None)
    found.append(Method("cosine", 'normalise="cosine"', lambda given: CosineScores(plain(given))))
    found.append(Method("KFAC", "preconditioner=tracin.KFAC()", variant(curvature)))
    if several:
        advice = "preconditioner=tracin.KFAC() at the last checkpoint alone"
        found.append(Method("KFAC, last", advice, variant(curvature, only_last=True)))
    if _has_moments(run):
        # Shuffled weights have no moments of their own.
        advice = "preconditioner=tracin.Adam()"
        found.append(Method("Adam", advice, variant(Adam()), reads_model=False))
    found.append(Method("random", "random scores", lambda given: RandomScores(), reads_model=False))
    found.append(Method("loss", "tracin.baselines.Loss(run)", Loss))
    if _has_features(run, train):
        advice = "tracin.baselines.NearestNeighbours(run)"
        found.append(Method("feature cosine", advice, NearestNeighbours))
    if has_texts:
        found.append(
            Method(
                "BM25",
                "tracin.baselines.BM25()",
                lambda given: BM25(),
                reads_model=False,
                reads_texts=True,
            )
        )
    return found


def _has_moments(run: Run) -> bool:
    try:
        Adam().check(run.checkpoints)
    except CheckpointError:
        return False
    return True


def _has_features(run: Run, train: Any) -> bool:
    few = open_examples(train, name="train").subset([0])
    try:
        last_linear(run, few, "feature cosine")
        NearestNeighbours(run).influence(few, few)  # type: ignore[arg-type]
    except (UnsupportedModelError, LossError):
        return False
    except TracInError:
        return True  # reported when it is computed in earnest
    return True
