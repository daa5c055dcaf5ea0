"""Small real data, and models trained to the minimum of a regularised loss."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

import tracin

L2 = 0.03


def binary(model: Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The losses of logistic regression: [examples]."""
    return F.binary_cross_entropy_with_logits(model(batch[0])[:, 0], batch[1], reduction="none")


def minimised(model: Module, objective: Callable[[], Tensor]) -> None:
    """Train to a minimum, in place."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-9, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(closure)


def regularised(model: Module, loss: Callable, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean loss + L2 / 2 x squared weights."""
    squares = sum((each.square().sum() for each in model.parameters()), torch.zeros(()))
    return loss(model, batch).mean() + L2 / 2 * squares


@dataclass(frozen=True, eq=False)
class Task:
    run: tracin.TracIn
    model: Module
    train: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]


def run_of(model: Module, loss, parameters=None) -> tracin.TracIn:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return tracin.TracIn(model, loss, [state], learning_rates="equal", parameters=parameters)


@pytest.fixture(scope="session")
def cancer() -> Task:
    """Logistic regression on scikit-learn's breast cancer data, in float64."""
    datasets = pytest.importorskip("sklearn.datasets")
    inputs, labels = datasets.load_breast_cancer(return_X_y=True)
    inputs = torch.as_tensor((inputs - inputs.mean(0)) / inputs.std(0))
    labels = torch.as_tensor(labels).double()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, queries = order[:400], order[400:440]
    model = torch.nn.Linear(30, 1).double()
    data = inputs[train], labels[train]
    minimised(model, lambda: regularised(model, binary, data))
    return Task(run_of(model, binary), model, data, (inputs[queries], labels[queries]))


@pytest.fixture(scope="session")
def digits() -> Task:
    """Softmax regression on scikit-learn's digits (650 parameters), in float64."""
    from tracin.demo.digits import open_digits

    pytest.importorskip("sklearn.datasets")
    images = open_digits()
    train = images.train_images[:500].flatten(1).double(), images.train_labels[:500]
    queries = images.test_images[:20].flatten(1).double(), images.test_labels[:20]
    model = torch.nn.Linear(64, 10).double()
    loss = tracin.CrossEntropy()
    minimised(model, lambda: regularised(model, loss, train))
    return Task(run_of(model, "cross_entropy"), model, train, queries)


@pytest.fixture
def network() -> Task:
    """An MLP on digits, half trained: what baselines without a minimum work on."""
    from tracin.demo.digits import open_digits

    pytest.importorskip("sklearn.datasets")
    images = open_digits()
    train = images.train_images[:200].flatten(1), images.train_labels[:200]
    queries = images.test_images[:10].flatten(1), images.test_labels[:10]
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(16, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    states = []
    for _ in range(3):
        for _ in range(10):
            optimizer.zero_grad()
            F.cross_entropy(model(train[0]), train[1]).backward()
            optimizer.step()
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    run = tracin.TracIn(model, "cross_entropy", states, learning_rates="equal")
    return Task(run, model, train, queries)
