"""Scores against the slow twin: autograd, one example and one step at a time."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from traced_training import (
    ALL,
    COUPLED,
    MODELS,
    TRAIN,
    batches,
    gap,
    mlp,
    seeded,
    sgd,
    traced,
    twin,
)
from tracin import Tracer
from tracin.tracing import Quadrature

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("path", ALL)
def test_scores_are_those_of_the_twin(tmp_path, build, path, train, queries):
    rows = [*batches(3), *batches(1, size=3, seed=9), *batches(1, size=1, seed=8)]
    trace, _ = traced(tmp_path, build, sgd, train, queries, rows)
    expected = twin(seeded(build), train, queries, rows, 0.1, path)
    found = trace.influence(path).double()
    assert float((found - expected).norm() / expected.norm()) < 1e-6  # tables are float32


@pytest.mark.parametrize("build", COUPLED.values(), ids=COUPLED)
def test_shares_of_coupled_examples_add_up_to_the_real_step(tmp_path, build, train, queries):
    trace, listening = traced(tmp_path, build, sgd, train, queries, batches(5))
    assert gap(trace, listening) < 1e-9
    assert np.abs(trace.steps.part(Quadrature.FIRST_ORDER, "unattributed")).max() == 0


def test_any_order_and_any_chunks_of_queries_give_the_same(tmp_path, train, queries):
    rows = batches(4)
    whole, _ = traced(tmp_path / "a", mlp, sgd, train, queries, rows)
    turned, _ = traced(tmp_path / "b", mlp, sgd, train, queries, [ids.flip(0) for ids in rows])
    chunked, _ = traced(tmp_path / "c", mlp, sgd, train, queries, rows, queries_at_once=2)
    for path in ALL:
        assert torch.allclose(whole.influence(path), turned.influence(path), atol=1e-9)
        assert torch.allclose(whole.influence(path), chunked.influence(path), atol=1e-9)
    assert np.allclose(whole.steps.rows[:, 3:], chunked.steps.rows[:, 3:], atol=1e-12)


def test_an_example_drawn_twice_gets_twice_the_share(tmp_path, train, queries):
    ids = torch.tensor([3, 5, 3, 8])
    double = (torch.cat([train[0], train[0][3:4]]), torch.cat([train[1], train[1][3:4]]))
    trace, _ = traced(tmp_path / "a", mlp, sgd, train, queries, [ids], repeats=True)
    apart, _ = traced(tmp_path / "b", mlp, sgd, double, queries, [torch.tensor([3, 5, TRAIN, 8])])
    assert torch.allclose(trace.influence()[3], 2 * apart.influence()[3])
    assert torch.allclose(apart.influence()[3], apart.influence()[TRAIN])


def test_accumulation_is_one_batch(tmp_path, train, queries):
    inputs, labels = train
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    rows = batches(3, size=6)
    with Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a") as tracer:
        for ids in rows:
            optimizer.zero_grad()
            for some in ids.split(2):
                with tracer.batch(some):
                    loss = F.cross_entropy(model(inputs[some]), labels[some]) / 3
                loss.backward()
            optimizer.step()
        found = tracer.trace()
    whole, _ = traced(tmp_path / "b", mlp, sgd, train, queries, rows)
    assert torch.allclose(found.influence(), whole.influence(Quadrature.TRAPEZOID), atol=1e-9)
    assert torch.allclose(found.self_influence(), whole.self_influence())


def test_every_n_th_step_alone_is_traced(tmp_path, train, queries):
    rows = batches(7)
    trace, listening = traced(tmp_path / "a", mlp, sgd, train, queries, rows, every=3)
    assert trace.steps.step.tolist() == [0, 3, 6]
    listening.found = listening.found[::3]
    assert gap(trace, listening) < 1e-12
    assert not trace.goodness().is_unbroken


def test_a_step_without_a_rate_adds_nothing(tmp_path, train, queries):
    trace, _ = traced(
        tmp_path, mlp, lambda p: torch.optim.SGD(p, lr=0.0), train, queries, batches(2, size=1)
    )
    assert not trace.ideal().any()
    assert not trace.influence().any()
