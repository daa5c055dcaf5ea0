"""How far a path is from the real loss drop of a step."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from traced_training import (
    ALL,
    batches,
    mlp,
    seeded,
    sgd,
    traced,
)
from tracin import Tracer
from tracin.tracing import Quadrature

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(
    ("path", "least", "most"),
    [
        (Quadrature.FIRST_ORDER, 3.5, 4.9),
        (Quadrature.MIDPOINT, 7, 14),
        (Quadrature.TRAPEZOID, 7, 14),
        (Quadrature.SIMPSON, 24, 89),
    ],
)
def test_the_gap_of_a_step_shrinks_with_the_rate(tmp_path, path, least, most, train, queries):
    gaps = []
    for halvings in range(4):
        rate = 0.15 / 2**halvings
        trace, _ = traced(
            tmp_path / str(halvings),
            mlp,
            lambda p, rate=rate: torch.optim.SGD(p, lr=rate),
            train,
            queries,
            batches(1),
        )
        gaps.append(float(np.abs(trace.steps.predicted(path) - trace.steps.actual).mean()))
    ratios = [one / other for one, other in pairwise(gaps)]
    assert all(least < ratio < most for ratio in ratios), ratios


def test_the_trapezoid_is_exact_for_quadratic_losses(tmp_path):
    model = seeded(lambda: nn.Linear(4, 1))
    generator = torch.Generator().manual_seed(5)
    train = torch.randn(10, 4, generator=generator), torch.randn(10, generator=generator)
    queries = torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator)
    optimizer = sgd(model.parameters())
    with Tracer(model, optimizer, "mse", queries, train, tmp_path / "a", paths=ALL) as tracer:
        for ids in torch.arange(10).split(3):
            optimizer.zero_grad()
            with tracer.batch(ids):
                loss = F.mse_loss(model(train[0][ids])[:, 0], train[1][ids])
            loss.backward()
            optimizer.step()
        steps = tracer.trace().steps
    for path in (Quadrature.TRAPEZOID, Quadrature.MIDPOINT, Quadrature.SIMPSON):
        assert np.abs(steps.predicted(path) - steps.actual).max() < 1e-12
    assert np.abs(steps.predicted(Quadrature.FIRST_ORDER) - steps.actual).max() > 1e-3
