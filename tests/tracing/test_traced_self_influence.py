"""Self-influence along the training."""

import pytest
import torch
from torch.nn import functional as F

import tracin
from traced_training import (
    TRAIN,
    batches,
    fit,
    losses,
    mlp,
    seeded,
    sgd,
    traced,
)
from tracin import Tracer

pytestmark = pytest.mark.usefixtures("float64")


def own_norms(model, train):
    rows = []
    for i in range(TRAIN):
        loss = F.cross_entropy(model(train[0][i : i + 1]), train[1][i : i + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(sum(g.square().sum() for g in grads))
    return torch.stack(rows)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_self_influence_along_the_trajectory(tmp_path, reduction, train, queries):
    rows, rate = batches(5), 0.01
    model, twin_model = seeded(mlp), seeded(mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    expected = torch.zeros(TRAIN)
    with Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a") as tracer:
        for ids in rows:
            twin_model.load_state_dict(model.state_dict())
            factor = 1 / len(ids) if reduction == "mean" else 1.0
            expected[ids] += rate * factor * own_norms(twin_model, train)[ids]
            optimizer.zero_grad()
            with tracer.batch(ids):
                loss = F.cross_entropy(model(train[0][ids]), train[1][ids], reduction=reduction)
            loss.backward()
            optimizer.step()
        found = tracer.trace().self_influence()
    assert torch.allclose(found, expected, rtol=1e-9)


def test_self_influence_of_unlike_weights_needs_them(tmp_path, train, queries):
    rows = batches(4)
    weights = torch.linspace(0.1, 0.9, 4)

    def run(folder, given):
        model = seeded(mlp)
        optimizer = sgd(model.parameters())
        with Tracer(model, optimizer, "cross_entropy", queries, train, folder) as tracer:
            for ids in rows:
                optimizer.zero_grad()
                with tracer.batch(ids, weights=given):
                    loss = losses(model, (train[0][ids], train[1][ids])) @ weights
                loss.backward()
                optimizer.step()
            return tracer.trace()

    with pytest.raises(tracin.QueryError, match="weights"):
        run(tmp_path / "a", None).self_influence()
    assert bool((run(tmp_path / "b", weights).self_influence() >= 0).all())


def test_without_queries_self_influence_alone(tmp_path, train, queries):
    both, _ = traced(tmp_path / "a", mlp, sgd, train, queries, batches(4))
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    with Tracer(model, optimizer, "cross_entropy", None, train, tmp_path / "b") as tracer:
        fit(tracer, model, optimizer, train, batches(4))
    alone = tracin.tracing.Trace.open(tmp_path / "b")
    assert torch.equal(alone.self_influence(), both.self_influence())
    with pytest.raises(tracin.QueryError, match="Without queries"):
        alone.goodness()
