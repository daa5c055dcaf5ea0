"""Training as the paper's MNIST net was: plain SGD at one rate, large batches, all in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tracin import Checkpoint, Recorder, Tracer, open_checkpoints
from tracin.tracing import Trace

SIZES = (784, 256, 128, 64, 10)  # 242,762 parameters; the paper says "240K" and no widths
PAPER_EPOCHS, PAPER_CHECKPOINTS = 140, (20, 50, 80, 110, 140)
RATE, HIGHEST_RATE = 0.033, 0.25


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults reproduce the paper's accuracies (docs/results.md).

    Attributes:
        epochs: Passes over the data.
        rate: The learning rate, the same throughout.
        batch: Examples a step.
        seed: Of the first weights and of the order of the examples.
    """

    epochs: int = PAPER_EPOCHS
    rate: float = RATE
    batch: int = 1000
    seed: int = 0

    @property
    def checkpoint_epochs(self) -> list[int]:
        """Every 30th epoch from the 20th of 140 (paper, 4.3), or as far along fewer epochs."""
        return sorted(
            {max(1, round(each * self.epochs / PAPER_EPOCHS)) for each in PAPER_CHECKPOINTS}
        )


def shortened(scale: float, seed: int) -> Recipe:
    """The paper's training with a share of its epochs, at a rate higher by as much.

    Rate times epochs stays the same, so the weights go about as far; up to the rate at which
    training would begin to jump.
    """
    return Recipe(max(5, round(PAPER_EPOCHS * scale)), min(RATE / scale, HIGHEST_RATE), seed=seed)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model.

    Attributes:
        model: With its last weights.
        epoch_seconds: The median time of an epoch, checkpoints not counted.
    """

    model: nn.Module
    epoch_seconds: float


def fully_connected(sizes: Sequence[int], seed: int) -> nn.Sequential:
    """A ReLU net with He's first weights and biases of zero, on flattened images."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True, eq=False)
class Followed:
    """A training of which every step was traced.

    Attributes:
        states: The weights after each of `Recipe.checkpoint_epochs`.
        self_influence: Added up over all steps, first order: [train].
        seconds: How long it took.
    """

    states: list[dict[str, Tensor]]
    self_influence: Tensor
    seconds: float


def net(recipe: Recipe) -> nn.Sequential:
    """The paper's net, before training."""
    return fully_connected(SIZES, recipe.seed)


def chosen(folder: Path, recipe: Recipe) -> list[Checkpoint]:
    """The checkpoints of `Recipe.checkpoint_epochs` that a Recorder wrote."""
    recorded = open_checkpoints(folder)
    return [recorded[epoch - 1] for epoch in recipe.checkpoint_epochs]


def epochs_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
) -> Iterator[float]:
    """Train epoch by epoch; gives each epoch's seconds."""
    order = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.epochs):
        start = perf_counter()
        for rows in torch.randperm(len(labels), generator=order).split(recipe.batch):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        yield perf_counter() - start


def trained(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, record: Path | None = None
) -> Trained:
    """Train by a recipe; with `record`, every epoch's weights go to that folder."""
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.rate)
    seconds = []
    if record is None:
        seconds += epochs_of(model, optimizer, images, labels, recipe)
        return Trained(model, median(seconds))
    with Recorder(model, optimizer, record, every="epoch") as recorder:
        for took in epochs_of(model, optimizer, images, labels, recipe):
            seconds.append(took)
            recorder.epoch()
    return Trained(model, median(seconds))


def scores(model: nn.Module, images: Tensor) -> Tensor:
    """The model's scores for each class: [examples, classes]."""
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(10_000)])


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose label scores highest."""
    return float((scores(model, images).argmax(1) == labels).double().mean())


def traced_self_influence(
    model: nn.Module, train: tuple[Tensor, Tensor], recipe: Recipe, folder: Path
) -> Followed:
    """Train by a recipe under a Tracer, without queries."""
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.rate)
    order = torch.Generator().manual_seed(recipe.seed)
    states, start = [], perf_counter()
    with Tracer(model, optimizer, "cross_entropy", None, train, folder) as tracer:
        for epoch in range(1, recipe.epochs + 1):
            for rows in torch.randperm(len(train[1]), generator=order).split(recipe.batch):
                optimizer.zero_grad()
                with tracer.batch(rows):
                    loss = F.cross_entropy(model(train[0][rows]), train[1][rows])
                loss.backward()
                optimizer.step()
            if epoch in recipe.checkpoint_epochs:
                states.append(copied(model))
    seconds = perf_counter() - start
    return Followed(states, Trace.open(folder).self_influence(), seconds)


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they are now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
