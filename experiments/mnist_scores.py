"""What ranks MNIST's training images and explains its test images: TracInCP and its rivals."""

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tracin
from tracin import baselines

Pair = tuple[Tensor, Tensor]
DIM = 1024  # numbers per gradient and checkpoint, in place of 242,762
SHOWN = 3  # proponents, and as many opponents
# L-BFGS over all features: sums that miss the class scores by a hundredth rank the same.
STEPS, TOLERANCE = 200, 1e-2
MOST_DAMPING = 1000  # times the first


@dataclass(frozen=True)
class InfluenceSettings:
    """How influence functions over all parameters are kept affordable.

    Attributes:
        damping: Added to each eigenvalue of the Hessian, which has negative ones; doubled until it
            outweighs them.
        steps: Of conjugate gradient, at most.
        curvature: How many training examples the Hessian is the mean of.
        probes: How many random vectors stand for the examples' own gradients, when influence on
            themselves is estimated: the paper's "randomized sketching based estimator".
    """

    damping: float
    steps: int
    curvature: int
    probes: int

    def __str__(self) -> str:
        return f"{self.damping:g}, {self.steps}, {self.curvature}, {self.probes}"


def scores_of(run: tracin.TracIn, train: Pair, seed: int) -> dict[str, Any]:
    """`scores` by name, [train] and high where suspect, and `seconds` by name."""
    checkpoints = run.checkpoints
    equal = tracin.TracIn(run.model, "cross_entropy", checkpoints, learning_rates="equal")
    last = tracin.TracIn(run.model, "cross_entropy", checkpoints[-1:])
    of_layer = tracin.TracIn(run.model, "cross_entropy", checkpoints, parameters="last")
    ways: dict[str, Callable[[], Any]] = {
        "TracInCP": lambda: run.self_influence(train),
        "TracInCP, last layer": lambda: of_layer.self_influence(train),
        "TracInCP, last checkpoint": lambda: last.self_influence(train),
        "TracInCP, equal weights": lambda: equal.self_influence(train),
        "TracInCP, random projection": lambda: projected(run, train, seed),
        "representer points": lambda: representers(run).scores(train),
        "loss": lambda: baselines.Loss(run).scores(train),
        "EL2N": lambda: baselines.EL2N(run).scores(train),
        "margin": lambda: baselines.Margin(run).scores(train),
        "confident learning": lambda: baselines.ConfidentLearning(run).scores(train),
    }
    scores, seconds = {}, {}
    for name, way in ways.items():
        start = perf_counter()
        scores[name] = torch.from_numpy(np.array(way())).double()
        seconds[name] = perf_counter() - start
    return {"scores": scores, "seconds": seconds}


def representers(run: tracin.TracIn) -> baselines.RepresenterPoints:
    """Of the last checkpoint."""
    return baselines.RepresenterPoints(run, steps=STEPS, tolerance=TOLERANCE)


def projected(run: tracin.TracIn, train: Pair, seed: int) -> Tensor:
    """Self-influence from random projections of the gradients: [train]."""
    with TemporaryDirectory() as folder:
        index = run.index(train, folder, tracin.Projection(DIM, seed), recall_queries=0)
        return torch.from_numpy(np.array(index.table()["self_influence_sketched"]))


def influence_functions(
    run: tracin.TracIn, train: Pair, settings: InfluenceSettings, seed: int
) -> dict[str, Any]:
    """What leaving an example out does to its own loss, over all parameters: `values` [train]."""
    start = perf_counter()

    def ask(fitted: baselines.FittedInfluence) -> Tensor:
        scores = fitted.estimated_scores(train, probes=settings.probes, seed=seed)
        return torch.from_numpy(scores.values)

    values, damping = damped(run, train, settings, ask)
    return {"values": values, "damping": damping, "seconds": perf_counter() - start}


def damped(
    run: tracin.TracIn,
    train: Pair,
    settings: InfluenceSettings,
    ask: Callable[[baselines.FittedInfluence], Tensor],
) -> tuple[Tensor, float]:
    """Ask influence functions at the last checkpoint, with as much damping as its Hessian needs.

    The curvature is that of the first training examples. Damping is doubled for as long as the
    Hessian is found not to be positive definite.
    """
    few = train[0][: settings.curvature], train[1][: settings.curvature]
    # A residual of a hundredth changes no rank worth reading, at a third of the steps.
    solver = baselines.ConjugateGradient(tolerance=1e-2, steps=settings.steps)
    damping, enough = settings.damping, MOST_DAMPING * settings.damping
    while True:
        method = baselines.InfluenceFunctions(run, damping=damping, solver=solver)
        try:
            return ask(method.fit(few)), damping
        except tracin.CurvatureError:
            if damping >= enough:
                raise
            damping *= 2


def explained(
    run: tracin.TracIn, train: Pair, queries: Pair, settings: InfluenceSettings
) -> dict[str, Any]:
    """The strongest proponents, then opponents, by method: [queries, shown] each."""
    influence = {
        "TracInCP": run.influence(train, queries).double(),
        "influence functions": damped(
            run, train, settings, lambda fitted: fitted.influence(train, queries)
        )[0],
        "representer points": representers(run).influence(train, queries),
    }
    lists = {}
    for name, each in influence.items():
        best, worst = each.topk(SHOWN, dim=0), each.topk(SHOWN, dim=0, largest=False)
        lists[name] = {
            "positions": torch.cat([best.indices, worst.indices]).T.contiguous(),
            "values": torch.cat([best.values, worst.values]).T.contiguous(),
        }
    return lists
