"""Figures 2 and 7 of the paper: steps, checkpoints and projections in the paper's own training."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import tracin
from experiments.mnist_images import Images
from experiments.training import Recipe, net, trained
from tracin.analysis.selection import By, Weighting
from tracin.demo.training import emptied
from tracin.tracing import Quadrature, Trace

Pair = tuple[Tensor, Tensor]
PATHS = (Quadrature.FIRST_ORDER, Quadrature.TRAPEZOID)
QUERIES = 100
PART = 6000  # training images whose scores are compared
DIMS = (16, 64, 256, 1024, 4096)
EVEN = 5


def traced(images: Images, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train under a Tracer, with random test images as queries; checkpoints go into a folder.

    Returns:
        `predicted` and `actual` loss drops by path, [steps, queries]; `scores` by path, [part,
        queries]; `rows` [part]; the mean `losses` of each epoch; seconds of CPU.
    """
    model = net(recipe)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.rate)
    order = torch.Generator().manual_seed(recipe.seed)
    train = images.train_images, images.train_labels
    losses, start = [], process_time()
    with tempfile.TemporaryDirectory() as kept:
        with (
            tracin.Recorder(model, optimizer, emptied(folder), every="epoch") as recorder,
            tracin.Tracer(
                model, optimizer, "cross_entropy", queries_of(images, recipe), train, kept,
                paths=PATHS,
            ) as tracer,
        ):  # fmt: skip
            for _ in range(recipe.epochs):
                total = 0.0
                for rows in torch.randperm(len(train[1]), generator=order).split(recipe.batch):
                    optimizer.zero_grad()
                    with tracer.batch(rows):
                        loss = F.cross_entropy(model(train[0][rows]), train[1][rows])
                    loss.backward()
                    optimizer.step()
                    total += len(rows) * loss.item()
                losses.append(total / len(train[1]))
                recorder.epoch()
        seconds = process_time() - start
        trace, rows = Trace.open(kept), part_of(images, recipe)
        good = {path.value: trace.goodness(path) for path in PATHS}
        return {
            "predicted": {name: torch.tensor(each.predicted) for name, each in good.items()},
            "actual": torch.tensor(good[PATHS[0].value].actual),
            "figures": {
                name: {
                    "pearson": each.pearson,
                    "slope": each.slope,
                    "ratio": each.conservation_ratio,
                    "totals": each.pearson_of_totals,
                    "lemma": each.lemma_gap,
                }
                for name, each in good.items()
            },
            "scores": {path.value: trace.influence(path)[rows].clone() for path in PATHS},
            "losses": losses,
            "seconds": seconds,
            "untraced": untraced(images, recipe),
        }


def queries_of(images: Images, recipe: Recipe) -> Pair:
    """Random test images."""
    drawn = torch.Generator().manual_seed(recipe.seed)
    chosen = torch.randperm(len(images.test_labels), generator=drawn)[:QUERIES]
    return images.test_images[chosen], images.test_labels[chosen]


def part_of(images: Images, recipe: Recipe) -> Tensor:
    """Positions of random training images: [part]."""
    drawn = torch.Generator().manual_seed(recipe.seed)
    return torch.randperm(len(images.train_labels), generator=drawn)[:PART]


def untraced(images: Images, recipe: Recipe) -> float:
    """Seconds of CPU that the training takes by itself, from one epoch."""
    once = Recipe(1, recipe.rate, recipe.batch, recipe.seed)
    start = process_time()
    trained(net(once), images.train_images, images.train_labels, once)
    return recipe.epochs * (process_time() - start)


def choices(
    images: Images, recipe: Recipe, folder: Path, losses: Sequence[float], reference: Tensor
) -> list[dict[str, Any]]:
    """Selections of checkpoints against every step, first order: name, epochs and correlations."""
    every = tracin.open_checkpoints(folder)
    steps = [one.step for one in every]
    rows = part_of(images, recipe)
    train = images.train_images[rows], images.train_labels[rows]
    products: dict[int, Tensor] = {}

    def product(epoch: int) -> Tensor:
        if epoch not in products:
            run = tracin.TracIn(
                net(recipe), "cross_entropy", [every[epoch]], learning_rates="equal"
            )
            products[epoch] = run.influence(train, queries_of(images, recipe)).double()
        return products[epoch]

    def weighted(epochs: Sequence[int], weights: Sequence[float]) -> Tensor:
        return torch.stack([w * product(e) for e, w in zip(epochs, weights, strict=True)]).sum(0)

    wanted: list[tuple[str, By, int, Weighting]] = [
        ("last", "even", 1, "equal"),
        ("middle", "middle", 1, "equal"),
        ("even", "even", 3, "equal"),
        ("even", "even", EVEN, "equal"),
        ("even", "even", 10, "equal"),
        ("largest loss reductions", "loss_drop", 1, "equal"),
        ("largest loss reductions", "loss_drop", 3, "equal"),
        ("largest loss reductions", "loss_drop", EVEN, "equal"),
        ("log spacing, span weights (our default)", "log", 3, "span"),
        ("log spacing, span weights (our default)", "log", 6, "span"),
        ("quadratic spacing, span weights", "quadratic", 3, "span"),
        ("quadratic spacing, span weights", "quadratic", 6, "span"),
    ]
    found = [_row("the paper's five", [e - 1 for e in recipe.checkpoint_epochs], reference,
                  weighted([e - 1 for e in recipe.checkpoint_epochs],
                           [1.0] * len(recipe.checkpoint_epochs)))]  # fmt: skip
    for name, by, budget, weights in wanted:
        most = len(every) - (by == "loss_drop")  # the first has no loss before it
        chosen = tracin.select_checkpoints(
            every, min(budget, most), by=by, losses=losses, weights=weights
        )
        epochs = [steps.index(one.step) for one in chosen.checkpoints]
        numbers = [float(np.mean(list(w.values())) if isinstance(w, dict) else w)
                   for w in chosen.weights]  # fmt: skip
        found.append(_row(name, epochs, reference, weighted(epochs, numbers)))
    return found


def _row(name: str, epochs: Sequence[int], reference: Tensor, scores: Tensor) -> dict[str, Any]:
    agreed = tracin.correlations(scores, reference.double())
    return {
        "name": name,
        "epochs": [epoch + 1 for epoch in epochs],
        "pooled": agreed.pooled,
        "per query": agreed.per_query,
    }


def projections(
    images: Images, recipe: Recipe, folder: Path, reference: Tensor
) -> list[dict[str, Any]]:
    """Gradients projected to fewer numbers, at the paper's five checkpoints."""
    every = tracin.open_checkpoints(folder)
    five = [every[epoch - 1] for epoch in recipe.checkpoint_epochs]
    run = tracin.TracIn(net(recipe), "cross_entropy", five)
    rows = part_of(images, recipe)
    train = images.train_images[rows], images.train_labels[rows]
    queries = queries_of(images, recipe)
    start = process_time()
    exact = run.influence(train, queries).double()
    took = process_time() - start
    found = []
    for dim in DIMS:
        start = process_time()
        with tempfile.TemporaryDirectory() as kept:
            projection = tracin.Projection(dim, recipe.seed)
            index = run.index(train, kept, projection, recall_queries=0)
            scores = index.influence(queries).double()
        found.append(_projected(f"{dim:,}", scores, exact, reference, process_time() - start))
    return [*found, _projected("not projected", exact, exact, reference, took)]


def _projected(
    name: str, scores: Tensor, exact: Tensor, reference: Tensor, seconds: float
) -> dict[str, Any]:
    to_exact = tracin.correlations(scores, exact)
    to_steps = tracin.correlations(scores, reference.double())
    return {
        "name": name,
        "exact pooled": to_exact.pooled,
        "exact per query": to_exact.per_query,
        "steps pooled": to_steps.pooled,
        "steps per query": to_steps.per_query,
        "seconds": seconds,
    }
