"""TracInIdeal, which needs steps of one example (section 3.1), and what approximates it."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import tracin
from experiments.mnist_images import Images
from experiments.training import Recipe, copied, net
from tracin.analysis import UniformWrong, noisy_labels
from tracin.tracing import Quadrature, Trace

Pair = tuple[Tensor, Tensor]
PATHS = (Quadrature.FIRST_ORDER, Quadrature.TRAPEZOID)
NOISE, CLASSES = 0.1, 10
QUERIES = 100
DIMS = (64, 1024)


def compared(images: Images, examples: int, epochs: int, rate: float, seed: int) -> dict[str, Any]:
    """Train on a few images one by one, a tenth of them under wrong labels, and trace every step.

    Returns:
        `influence` by method, [train, queries]; `own` by method, [train]: influence on itself;
        `seconds` of CPU by method; `is_noisy` [train]; the rate and epochs.
    """
    drawn = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(images.train_labels), generator=drawn)[:examples]
    asked = torch.randperm(len(images.test_labels), generator=drawn)[:QUERIES]
    planted = noisy_labels(images.train_labels[rows], UniformWrong(CLASSES), NOISE, seed=seed)
    train = images.train_images[rows], planted.labels
    queries = images.test_images[asked], images.test_labels[asked]
    # The examples are queries as well, for their influence on themselves.
    both = torch.cat([queries[0], train[0]]), torch.cat([queries[1], train[1]])
    recipe = Recipe(epochs, rate, batch=1, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        traced = _traced(train, both, recipe, Path(folder))
        trace = Trace.open(folder)
        whole = {
            "ideal": trace.ideal(),
            "first order": trace.influence(Quadrature.FIRST_ORDER).double(),
            "trapezoid": trace.influence(Quadrature.TRAPEZOID).double(),
        }
    influence = {name: each[:, :QUERIES] for name, each in whole.items()}
    own = {name: each[:, QUERIES:].diagonal().clone() for name, each in whole.items()}
    seconds = dict.fromkeys(whole, traced["seconds"])
    checkpoints = [tracin.Checkpoint(state, rate) for state in traced["states"]]
    run = tracin.TracIn(net(recipe), "cross_entropy", checkpoints)
    for name, (products, itself, took) in _by_checkpoints(run, train, queries, seed).items():
        influence[name], own[name], seconds[name] = products, itself, took
    return {
        "influence": influence,
        "own": own,
        "seconds": seconds,
        "is_noisy": planted.is_noisy,
        "untraced": _untraced(train, recipe),
    }


def _traced(train: Pair, queries: Pair, recipe: Recipe, folder: Path) -> dict[str, Any]:
    model = net(recipe)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.rate)
    order = torch.Generator().manual_seed(recipe.seed)
    start, states = process_time(), []
    with tracin.Tracer(
        model, optimizer, "cross_entropy", queries, train, folder, paths=PATHS
    ) as tracer:
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(train[1]), generator=order).split(1):
                optimizer.zero_grad()
                with tracer.batch(rows):
                    loss = F.cross_entropy(model(train[0][rows]), train[1][rows])
                loss.backward()
                optimizer.step()
            states.append(copied(model))
    return {"states": states, "seconds": process_time() - start}


def _untraced(train: Pair, recipe: Recipe) -> float:
    """Seconds of CPU that the training takes by itself."""
    model = net(recipe)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.rate)
    start = process_time()
    for row in range(len(train[1])):
        optimizer.zero_grad()
        F.cross_entropy(model(train[0][row, None]), train[1][row, None]).backward()
        optimizer.step()
    return recipe.epochs * (process_time() - start)


def _by_checkpoints(
    run: tracin.TracIn, train: Pair, queries: Pair, seed: int
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """By method: [train, queries], [train], seconds of CPU for the former."""

    def projected(dim: int) -> tuple[Tensor, Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            index = run.index(train, folder, tracin.Projection(dim, seed), recall_queries=0)
            own = np.array(index.table()["self_influence_sketched"])
            return index.influence(queries).double(), torch.from_numpy(own).double()

    def indexed() -> tuple[Tensor, Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            index = run.index(train, folder, recall_queries=0)
            return index.influence(queries).double(), index.self_influence().double()

    def exact() -> tuple[Tensor, Tensor]:
        return run.influence(train, queries).double(), run.self_influence(train).double()

    ways: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "TracInCP": exact,
        **{f"TracInCP, projected to {dim:,}": _of(projected, dim) for dim in DIMS},
        "TracInCP, index (2,048)": indexed,
    }
    found = {}
    for name, way in ways.items():
        start = process_time()
        products, own = way()
        found[name] = products, own, process_time() - start
    return found


def _of(
    way: Callable[[int], tuple[Tensor, Tensor]], dim: int
) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: way(dim)
