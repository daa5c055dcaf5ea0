"""Figure 7 of the paper: predicted against real loss changes, at every step of MNIST's training.

python -m experiments.traced_training              # about five minutes on one thread
python -m experiments.traced_training --quick      # a minute: a tenth of the data, a few epochs

The paper's net is trained once under a Tracer, with 100 random test images as queries. Printed are
the correlation of predicted with real loss changes (paper: 0.978), for first order as the paper
has it and for the paths that mend its bias, and the cost against the same training untraced.
"""

import argparse
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch.nn import functional as F

import tracin
from experiments.mnist import PAPER_EPOCHS, net
from experiments.mnist_images import Images, open_mnist
from experiments.training import Recipe, accuracy, trained
from tracin.demo.training import emptied

QUERIES = 100
PATHS = (
    tracin.tracing.Quadrature.TRAPEZOID,
    tracin.tracing.Quadrature.FIRST_ORDER,
    tracin.tracing.Quadrature.MIDPOINT,
)
PHASES = 3


def main(arguments: list[str] | None = None) -> None:
    """Run all of it and print what came out."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    recipe, images = Recipe(epochs=options.epochs, seed=options.seed), open_mnist()
    if options.quick:
        images = replace(
            images,
            train_images=images.train_images[:6000],
            train_labels=images.train_labels[:6000],
        )
        recipe = replace(recipe, epochs=min(recipe.epochs, 14), rate=0.1, batch=100)
    print(
        f"tracin {tracin.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.get_num_threads()} of {os.cpu_count()} threads, "
        f"seed {recipe.seed}\n{recipe}\n"
    )
    plain = trained(net(recipe), images.train_images, images.train_labels, recipe)
    folder = emptied(options.folder)
    trace, seconds = traced(images, recipe, folder)
    epochs = recipe.epochs * plain.epoch_seconds
    print(
        f"Training: {epochs:.0f} s untraced, {seconds:.0f} s traced with {QUERIES} queries and "
        f"{len(PATHS)} paths ({seconds / epochs:.2f} x). Test accuracy "
        f"{accuracy(plain.model, images.test_images, images.test_labels):.2%}.\n"
    )
    for path in PATHS:
        found = trace.goodness(path)
        print(f"{found}\n{by_phase(found)}\n")
        found.plot(folder / f"figure7-{path.value}.png")
    one, other = (trace.influence(path) for path in PATHS[:2])
    told = tracin.correlations(other, one)
    print(
        f"Scores of first order against the trapezoid: pooled r {told.pooled:.4f}, mean per-query "
        f"r {told.per_query:.4f}.\nFigures: {folder}"
    )


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.traced_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=PAPER_EPOCHS, help="passes (default 140)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and queries")
    parser.add_argument(
        "--folder", type=Path, default=Path("tracin-demo/traced"), help="where results go"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--quick", action="store_true", help="6,000 images, at most 14 epochs")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error("--epochs is at least 1")
    return options


def traced(images: Images, recipe: Recipe, folder: Path) -> tuple[tracin.tracing.Trace, float]:
    """Train as `experiments.training` does, under a Tracer."""
    model = net(recipe)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.rate)
    some = torch.Generator().manual_seed(recipe.seed)
    chosen = torch.randperm(len(images.test_labels), generator=some)[:QUERIES]
    queries = tracin.WithIds(
        (images.test_images[chosen], images.test_labels[chosen]), chosen.tolist()
    )
    train = images.train_images, images.train_labels
    order = torch.Generator().manual_seed(recipe.seed)
    with tracin.Tracer(
        model, optimizer, "cross_entropy", queries, train, folder, paths=PATHS
    ) as tracer:
        start = perf_counter()
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(train[1]), generator=order).split(recipe.batch):
                optimizer.zero_grad()
                with tracer.batch(rows):
                    loss = F.cross_entropy(model(train[0][rows]), train[1][rows])
                loss.backward()
                optimizer.step()
        seconds = perf_counter() - start
    return tracin.tracing.Trace.open(folder), seconds


def by_phase(found: tracin.tracing.TraceDiagnostics) -> str:
    """The correlation in the first, second and last part of the training."""
    parts = zip(
        np.array_split(found.predicted, PHASES), np.array_split(found.actual, PHASES), strict=True
    )
    values = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in parts]
    return f"by thirds of the training: {', '.join(f'{value:.4f}' for value in values)}"


if __name__ == "__main__":
    try:
        main()
    except tracin.TracInError as error:
        sys.exit(f"error: {error}")
