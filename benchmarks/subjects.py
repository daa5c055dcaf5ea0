"""What is timed: a model with its checkpoints, examples, queries and loss, ready for a pass."""

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from benchmarks.models import LanguageModel, ResNet, mlp, settle_norms

Pair = tuple[Tensor, Tensor]  # inputs and labels

RATE = 0.1  # of every checkpoint: any number takes the same time
WORDS, LENGTH = 4096, 128


@final
@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model and all that a pass over its examples needs.

    Attributes:
        name: As printed.
        model: In eval mode, as tracin runs it.
        loss: The per-example loss that tracin is given.
        mean_loss: The same loss as a training loop has it, (model, batch) -> scalar.
        checkpoints: State dicts.
        train: Examples.
        queries: More of them.
        batch_size: Of every pass, plain or traced.
    """

    name: str
    model: nn.Module
    loss: str | Callable[[nn.Module, Pair], Tensor]
    mean_loss: Callable[[nn.Module, Pair], Tensor]
    checkpoints: list[dict[str, Tensor]]
    train: Pair
    queries: Pair
    batch_size: int

    def traced(self) -> tracin.TracIn:
        """The front door, as a user opens it."""
        rates = [RATE] * len(self.checkpoints)
        return tracin.TracIn(self.model, self.loss, self.checkpoints, learning_rates=rates)

    def plain_pass(self) -> None:
        """What everything is compared to: forward and backward over all examples, per checkpoint.

        Loading the weights is left out, in favour of the plain pass.
        """
        inputs, labels = self.train
        for _ in self.checkpoints:
            for start in range(0, len(inputs), self.batch_size):
                rows = slice(start, start + self.batch_size)
                self.model.zero_grad()
                self.mean_loss(self.model, (inputs[rows], labels[rows])).backward()

    def some_queries(self, count: int) -> Pair:
        """The first `count` queries."""
        inputs, labels = self.queries
        return inputs[:count], labels[:count]


def mlp_subject(examples: int, checkpoints: int = 3, queries: int = 100) -> Subject:
    """784-256-128-64-10 on MNIST where TRACIN_DATA holds it, else on noise."""
    total = examples + queries
    inputs, labels = _mnist(total) or _noise(total, (784,))
    model = _seeded(mlp, 0).eval()
    return Subject(
        name="MLP 784-256-128-64-10",
        model=model,
        loss="cross_entropy",
        mean_loss=_mean_cross_entropy,
        checkpoints=[_seeded(mlp, seed).state_dict() for seed in range(checkpoints)],
        train=(inputs[:examples], labels[:examples]),
        queries=(inputs[examples:], labels[examples:]),
        batch_size=2000,
    )


def resnet_subject(depth: int, examples: int, queries: int = 16) -> Subject:
    """A residual net on noise of the shape of CIFAR images, BatchNorm in eval mode."""
    inputs, labels = _noise(examples + queries, (3, 32, 32))
    model = _seeded(lambda: ResNet(depth), 0)
    settle_norms(model, inputs[:64])
    return Subject(
        name=f"ResNet-{depth}",
        model=model,
        loss="cross_entropy",
        mean_loss=_mean_cross_entropy,
        checkpoints=[_copied(model)],
        train=(inputs[:examples], labels[:examples]),
        queries=(inputs[examples:], labels[examples:]),
        batch_size=64,
    )


def lm_subject(examples: int, queries: int = 8) -> Subject:
    """A 4-layer transformer language model on random words; an example is a sequence."""
    model = _seeded(lambda: LanguageModel(WORDS, LENGTH, width=256, layers=4, heads=4), 0).eval()
    some = torch.Generator().manual_seed(1)
    words = torch.randint(WORDS, (examples + queries, LENGTH + 1), generator=some)
    inputs, labels = words[:, :-1].contiguous(), words[:, 1:].contiguous()
    return Subject(
        name="transformer LM",
        model=model,
        loss=_sequence_losses,
        mean_loss=_mean_word_loss,
        checkpoints=[_copied(model)],
        train=(inputs[:examples], labels[:examples]),
        queries=(inputs[examples:], labels[examples:]),
        batch_size=16,
    )


def _mean_cross_entropy(model: nn.Module, batch: Pair) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def _mean_word_loss(model: nn.Module, batch: Pair) -> Tensor:
    words, following = batch
    return F.cross_entropy(model(words).flatten(0, 1), following.flatten())


def _sequence_losses(model: nn.Module, batch: Pair) -> Tensor:
    words, following = batch
    losses = F.cross_entropy(model(words).flatten(0, 1), following.flatten(), reduction="none")
    return losses.view(following.shape).mean(1)


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _noise(examples: int, shape: tuple[int, ...]) -> Pair:
    some = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples, *shape, generator=some)
    return inputs, torch.randint(10, (examples,), generator=some)


def _mnist(examples: int) -> Pair | None:
    folder = Path(os.environ.get("TRACIN_DATA") or ".") / "mnist"
    if not folder.is_dir():
        return None
    images = _idx(folder / "train-images-idx3-ubyte.gz", 16, examples * 784)
    labels = _idx(folder / "train-labels-idx1-ubyte.gz", 8, examples)
    return torch.from_numpy(images).float().view(-1, 784) / 255, torch.from_numpy(labels).long()


def _idx(path: Path, header: int, count: int) -> np.ndarray:
    with gzip.open(path) as file:
        file.read(header)
        return np.frombuffer(file.read(count), np.uint8).copy()
