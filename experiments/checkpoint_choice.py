"""Which checkpoints stand for a whole training: the choices of figure 2 of the paper, and others.

python -m experiments.checkpoint_choice              # about five minutes on one thread
python -m experiments.checkpoint_choice --quick      # a minute: a tenth of the data, a few epochs

The MNIST net is trained once, and in the same loop the influence of every training image on 100
test images is added up step by step (section 3.1 of the paper), in plain torch and without the
library: what choices of checkpoints are measured against. What was computed stays in --folder
(1.7 GB), and is read from there by the next call.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from experiments.mnist import PAPER_CHECKPOINTS, PAPER_EPOCHS, SIZES
from experiments.mnist_images import Images, open_mnist
from experiments.training import Recipe, fully_connected
from tracin import Correlations, Selection, correlations, select_checkpoints
from tracin.analysis.selection import By, Weighting
from tracin.checkpoints import loaded
from tracin.demo.training import emptied

QUERIES = 100
SKETCHED, SKETCH_SIZES = 6000, (16, 64, 256, 1024, 4096)
SKETCH_CHECKPOINTS = 5
AT_ONCE = 200  # dense gradients: 200 MB


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained and asked.

    Attributes:
        images: [train, 784], from 0 to 1.
        labels: [train].
        query_images: [queries, 784].
        query_labels: [queries].
        recipe: How to train.
    """

    images: Tensor
    labels: Tensor
    query_images: Tensor
    query_labels: Tensor
    recipe: Recipe

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """The training examples, as tracin takes them."""
        return self.images, self.labels

    @property
    def queries(self) -> tuple[Tensor, Tensor]:
        """The queries, as tracin takes them."""
        return self.query_images, self.query_labels


@dataclass(frozen=True, eq=False)
class Reference:
    """What the training itself gave.

    Attributes:
        scores: [train, queries]; per-step TracIn.
        losses: [epochs]; the mean loss over each epoch's steps.
        checkpoints: One at the end of each epoch.
        seconds: How long the training took, reference included.
    """

    scores: Tensor
    losses: list[float]
    checkpoints: list[tracin.Checkpoint]
    seconds: float


def reference_of(task: Task, folder: Path) -> Reference:
    """Train and add up, or read what an earlier call left."""
    told = repr((task.recipe, len(task.labels), QUERIES))
    kept, checkpoints = folder / "reference.npz", folder / "checkpoints"
    if kept.is_file():
        with np.load(kept) as found:
            if str(found["told"]) == told:
                return Reference(
                    torch.from_numpy(found["scores"]),
                    found["losses"].tolist(),
                    tracin.open_checkpoints(checkpoints),
                    float(found["seconds"]),
                )
    for stale in (folder / "products").glob("*.npy"):
        stale.unlink()
    kept.unlink(missing_ok=True)
    start = perf_counter()
    scores, losses = trained_and_traced(task, emptied(checkpoints))
    seconds = perf_counter() - start
    np.savez(kept, told=told, scores=scores.numpy(), losses=losses, seconds=seconds)
    return Reference(scores, losses, tracin.open_checkpoints(checkpoints), seconds)


def trained_and_traced(task: Task, folder: Path) -> tuple[Tensor, list[float]]:
    """Train; at every step add rate / batch x gradient . gradient for the images it visits."""
    recipe = task.recipe
    model = fully_connected(SIZES, recipe.seed)
    linears = linears_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.rate)
    order = torch.Generator().manual_seed(recipe.seed)
    scores = torch.zeros(len(task.labels), len(task.query_labels))
    # The pixels never change: their products are the same at every step.
    pixels = task.images @ task.query_images.T + 1
    losses = []
    with tracin.Recorder(model, optimizer, folder, every="epoch") as recorder, torch.no_grad():
        for _ in range(recipe.epochs):
            total = 0.0
            for rows in torch.randperm(len(task.labels), generator=order).split(recipe.batch):
                own = pass_of(linears, task.images[rows], task.labels[rows])
                asked = pass_of(linears, task.query_images, task.query_labels)
                products = pixels[rows] * (own.errors[0] @ asked.errors[0].T)
                for layer in range(1, len(linears)):
                    inputs = own.inputs[layer] @ asked.inputs[layer].T
                    products += (inputs + 1) * (own.errors[layer] @ asked.errors[layer].T)
                scores[rows] += recipe.rate / len(rows) * products
                for linear, inputs, errors in zip(linears, own.inputs, own.errors, strict=True):
                    linear.weight.grad = errors.T @ inputs / len(rows)
                    linear.bias.grad = errors.mean(0)
                optimizer.step()
                total += float(own.losses.sum())
            losses.append(total / len(task.labels))
            recorder.epoch()
    return scores, losses


@dataclass(frozen=True, eq=False)
class Passed:
    """One pass forward and back: each layer's [examples, inputs] and errors [examples, outputs].

    The errors are the derivatives of an example's own loss by the layer's outputs, so that its
    gradient is errors x inputs for the weight, and errors for the bias.
    """

    inputs: list[Tensor]
    errors: list[Tensor]
    losses: Tensor


def linears_of(model: nn.Module) -> list[nn.Linear]:
    """The layers with weights, in their order."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def pass_of(linears: Sequence[nn.Linear], images: Tensor, labels: Tensor) -> Passed:
    """Forward and back by hand."""
    inputs = [images]
    for linear in linears[:-1]:
        inputs.append(linear(inputs[-1]).relu())
    scores = linears[-1](inputs[-1])
    error = scores.softmax(1) - F.one_hot(labels, scores.shape[1])
    errors = [error]
    for linear, activations in zip(linears[:0:-1], inputs[:0:-1], strict=True):
        error = (error @ linear.weight) * (activations > 0)
        errors.append(error)
    return Passed(inputs, errors[::-1], F.cross_entropy(scores, labels, reduction="none"))


def task_of(images: Images, recipe: Recipe) -> Task:
    """All training images, and some test images drawn by the seed."""
    drawn = torch.randperm(
        len(images.test_labels), generator=torch.Generator().manual_seed(recipe.seed)
    )[:QUERIES]
    return Task(
        images.train_images.flatten(1),
        images.train_labels,
        images.test_images[drawn].flatten(1),
        images.test_labels[drawn],
        recipe,
    )


@dataclass(frozen=True, eq=False)
class Products:
    """Gradient . gradient at one checkpoint, unweighted: had once, kept on disk.

    Attributes:
        task: What was trained.
        folder: Where to keep them.
    """

    task: Task
    folder: Path

    def at(self, checkpoint: tracin.Checkpoint) -> Tensor:
        """[train, queries], from the library."""
        path = self.folder / f"{Path(checkpoint.name).stem}.npy"
        if not path.is_file():
            model = fully_connected(SIZES, self.task.recipe.seed)
            run = tracin.TracIn(model, "cross_entropy", [checkpoint], learning_rates="equal")
            np.save(path, run.influence(self.task.train, self.task.queries).numpy())
        return torch.from_numpy(np.load(path))

    def weighted(self, selection: Selection) -> Tensor:
        """The influence by a selection: scores are sums over checkpoints."""
        total = torch.zeros(len(self.task.labels), len(self.task.query_labels))
        for checkpoint, weight in zip(selection.checkpoints, selection.weights, strict=True):
            if isinstance(weight, dict):
                raise TypeError("plain SGD has one rate for all parameters")
            total.add_(self.at(checkpoint), alpha=weight)
        return total


def selections_of(reference: Reference) -> dict[str, Selection]:
    """The rows of the table."""
    every, losses = reference.checkpoints, reference.losses

    def chosen(by: By, budget: int, weights: Weighting = "equal") -> Selection:
        return select_checkpoints(every, budget, by=by, losses=losses, weights=weights)

    rows = {"last": chosen("even", 1), "middle": chosen("middle", 1)}
    rows |= {f"even end points, {k}": chosen("even", k) for k in (3, 5, 10, 20)}
    rows |= {f"even mid points, {k}": chosen("middle", k) for k in (3, 5, 10, 20)}
    rows |= {f"even mid points, {k}, span": chosen("middle", k, "span") for k in (3, 5, 10, 20)}
    paper = sorted({max(1, round(each * len(every) / PAPER_EPOCHS)) for each in PAPER_CHECKPOINTS})
    named = ", ".join(map(str, paper))
    rows[f"epochs {named}"] = by_hand(reference, paper, "equal")
    rows[f"epochs {named}, span"] = by_hand(reference, paper, "span")
    by_loss, by_step = (1, 3, 5, 10), (1, 3, 6, 10)
    ways: tuple[tuple[By, tuple[int, ...]], ...] = (
        ("loss_drop", by_loss),
        ("equal_drop", by_loss),
        ("log", by_step),
        ("quadratic", by_step),
    )
    weightings: tuple[Weighting, ...] = ("equal", "span")
    for way, budgets in ways:
        for weights in weightings:
            for budget in budgets:
                if budget > 1 or weights == "equal":
                    rows[f"{way}, {budget}, {weights}"] = chosen(way, budget, weights)
    together = {each.step or 0: each for row in rows.values() for each in row.checkpoints}
    used = [every.index(each) + 1 for _, each in sorted(together.items())]
    rows["all of these, span"] = by_hand(reference, used, "span")
    return rows


def by_hand(reference: Reference, epochs: Sequence[int], weights: Weighting) -> Selection:
    """The ends of some epochs, counted from 1."""
    picked = [reference.checkpoints[epoch - 1] for epoch in epochs]
    losses = [reference.losses[epoch - 1] for epoch in epochs]
    return select_checkpoints(picked, len(picked), by="even", losses=losses, weights=weights)


def tell_choices(rows: dict[str, Selection], products: Products, reference: Reference) -> None:
    """Table A4, as Markdown."""
    print(
        "\n| checkpoints | epochs | pooled r | mean per-query r | mean per-query rank r |\n"
        "|---|---|---|---|---|"
    )
    for name, row in rows.items():
        told = correlations(products.weighted(row), reference.scores)
        epochs = [reference.checkpoints.index(one) + 1 for one in row.checkpoints]
        shown = ", ".join(map(str, epochs)) if len(epochs) <= 10 else f"{len(epochs)} of them"
        print(f"| {name} | {shown} | {cells(told)} |", flush=True)


def cells(told: Correlations) -> str:
    """Three numbers of a row."""
    return f"{told.pooled:.3f} | {told.per_query:.3f} | {told.ranks_per_query:.3f}"


def tell_sketches(selection: Selection, products: Products, reference: Reference) -> None:
    """What is left of the scores when all gradients are randomly projected."""
    task = products.task
    part = torch.randperm(
        len(task.labels), generator=torch.Generator().manual_seed(task.recipe.seed)
    )[:SKETCHED]
    exact = products.weighted(selection)[part]
    print(
        f"\nGradients of {len(part):,} training images projected to d numbers, "
        f"{len(selection)} even checkpoints, equal weights:\n\n"
        "| d | against exact: pooled r | mean per-query r | mean per-query rank r "
        "| against per-step: pooled r | mean per-query r | mean per-query rank r |\n"
        "|---|---|---|---|---|---|---|"
    )
    for size, scores in sketched(task, selection, part).items():
        told = correlations(scores, exact), correlations(scores, reference.scores[part])
        print(f"| {size} | {cells(told[0])} | {cells(told[1])} |", flush=True)
    told = correlations(exact, exact), correlations(exact, reference.scores[part])
    print(f"| exact | {cells(told[0])} | {cells(told[1])} |")


def sketched(task: Task, selection: Selection, part: Tensor) -> dict[int, Tensor]:
    """The influence by projected gradients, for each size: [part, queries].

    Every parameter is added, under a random sign, to one of d numbers (a count sketch): products
    of such sums are right on average. Smaller sketches are folds of the largest.
    """
    model = fully_connected(SIZES, task.recipe.seed)
    linears = linears_of(model)
    most = max(SKETCH_SIZES)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    random = torch.Generator().manual_seed(task.recipe.seed)
    places = torch.randint(most, (numbers,), generator=random)
    signs = torch.randint(2, (numbers, 1), generator=random).float() * 2 - 1
    totals = {size: torch.zeros(len(part), len(task.query_labels)) for size in SKETCH_SIZES}

    def sketch(images: Tensor, labels: Tensor) -> Tensor:
        """[most, examples]."""
        gradients = dense_gradients(pass_of(linears, images, labels))
        shape = most, len(labels)
        return torch.zeros(shape).index_add_(0, places, gradients.mul_(signs))

    for checkpoint in selection.checkpoints:
        with torch.no_grad(), loaded(model, checkpoint):
            asked = sketch(*task.queries)
            for rows in torch.arange(len(part)).split(AT_ONCE):
                own = sketch(task.images[part[rows]], task.labels[part[rows]])
                for size, total in totals.items():
                    total[rows] += folded(own, size).T @ folded(asked, size)
    return totals


def dense_gradients(passed: Passed) -> Tensor:
    """Each example's whole gradient: [parameters, examples]."""
    parts = []
    for inputs, errors in zip(passed.inputs, passed.errors, strict=True):
        parts += [(errors.T[:, None] * inputs.T[None]).flatten(0, 1), errors.T]
    return torch.cat(parts)


def folded(sketch: Tensor, size: int) -> Tensor:
    """A sketch of fewer numbers: [size, examples]."""
    return sketch.view(-1, size, sketch.shape[1]).sum(0)


def main(arguments: list[str] | None = None) -> None:
    """Run all of it and print what came out."""
    options = parsed(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = Recipe(epochs=options.epochs, seed=options.seed)
    images = open_mnist()
    if options.quick:
        images = replace(
            images,
            train_images=images.train_images[:6000],
            train_labels=images.train_labels[:6000],
        )
        recipe = replace(recipe, epochs=min(recipe.epochs, 28), rate=0.1, batch=100)
    print(
        f"tracin {tracin.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.get_num_threads()} of {os.cpu_count()} threads, "
        f"seed {recipe.seed}\n{recipe}\n",
        flush=True,
    )
    start = perf_counter()
    task = task_of(images, recipe)
    folder = options.folder
    (folder / "products").mkdir(parents=True, exist_ok=True)
    reference = reference_of(task, folder)
    print(
        f"Training, with per-step influence on {len(task.query_labels)} test images: "
        f"{reference.seconds:.0f} s; loss {reference.losses[0]:.3f} after the first epoch, "
        f"{reference.losses[-1]:.4f} after the last.",
        flush=True,
    )
    products = Products(task, folder / "products")
    tell_choices(selections_of(reference), products, reference)
    even = select_checkpoints(reference.checkpoints, SKETCH_CHECKPOINTS, by="even", weights="equal")
    tell_sketches(even, products, reference)
    print(f"\nAll of it: {perf_counter() - start:.0f} s. What was computed: {folder}")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.checkpoint_choice", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--epochs", type=int, default=PAPER_EPOCHS, help="passes (default 140)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and queries")
    parser.add_argument(
        "--folder", type=Path, default=Path("tracin-demo/checkpoint-choice"), help="what is kept"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--quick", action="store_true", help="6,000 images, at most 28 epochs")
    options = parser.parse_args(arguments)
    if options.epochs < 20:
        parser.error("--epochs is at least 20, the most checkpoints that are chosen")
    return options


if __name__ == "__main__":
    try:
        main()
    except tracin.TracInError as error:
        sys.exit(f"error: {error}")
