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

from tracin import Recorder


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults reproduce the paper's accuracies (docs/results.md).

    Attributes:
        epochs: Passes over the data.
        rate: The learning rate, the same throughout.
        batch: Examples a step.
        seed: Of the first weights and of the order of the examples.
    """

    epochs: int = 140
    rate: float = 0.033
    batch: int = 1000
    seed: int = 0


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
