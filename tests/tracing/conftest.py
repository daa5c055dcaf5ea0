"""The data and the loop that tests of tracing share."""

import pytest
import torch

from traced_training import (
    CLASSES,
    QUERIES,
    TRAIN,
    mlp,
    seeded,
    sgd,
)
from tracin import Tracer


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def train():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(TRAIN, 6, generator=generator)
    return inputs, torch.randint(CLASSES, (TRAIN,), generator=generator)


@pytest.fixture
def queries():
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(QUERIES, 6, generator=generator)
    return inputs, torch.randint(CLASSES, (QUERIES,), generator=generator)


@pytest.fixture
def loop(tmp_path, train, queries):
    """A model, its optimizer, and a Tracer."""
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    return (
        model,
        optimizer,
        Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a"),
    )
