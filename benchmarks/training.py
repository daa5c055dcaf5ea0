"""A training loop, plain and traced: what tracing costs while a model trains."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn
from torch.nn import functional as F

import tracin
from benchmarks.models import mlp
from benchmarks.subjects import Pair, mlp_subject

BATCH, RATE, EPOCHS = 1000, 0.03, 5


@final
@dataclass(frozen=True, kw_only=True)
class TrainingSubject:
    """Five epochs of SGD, batches of 1,000.

    Attributes:
        name: As printed.
        train: Examples.
        queries: More of them.
    """

    name: str
    train: Pair
    queries: Pair

    def plain_pass(self) -> None:
        """What everything is compared to: the training without a Tracer."""
        model, optimizer = self._begun()
        self._fit(model, optimizer, lambda rows: nullcontext())

    def traced_pass(self, queries: Pair | None, paths: Sequence[tracin.tracing.Quadrature]) -> None:
        """The same training under a Tracer, setting up and closing included."""
        model, optimizer = self._begun()
        with (
            tempfile.TemporaryDirectory() as folder,
            tracin.Tracer(
                model, optimizer, "cross_entropy", queries, self.train, folder, paths=paths
            ) as tracer,
        ):
            self._fit(model, optimizer, tracer.batch)

    def _begun(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = mlp()
        return model, torch.optim.SGD(model.parameters(), lr=RATE)

    def _fit(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        within: Callable[[Any], AbstractContextManager[None]],
    ) -> None:
        inputs, labels = self.train
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(inputs)).split(BATCH):
                batch, truth = inputs[rows], labels[rows]
                optimizer.zero_grad()
                with within(rows):
                    loss = F.cross_entropy(model(batch), truth)
                loss.backward()
                optimizer.step()


def training_subject(examples: int, queries: int = 100) -> TrainingSubject:
    """The MLP of the other rows, from new weights."""
    data = mlp_subject(examples, 1, queries)
    return TrainingSubject(name=data.name, train=data.train, queries=data.queries)
