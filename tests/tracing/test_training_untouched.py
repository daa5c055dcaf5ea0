"""A traced training is the training without a Tracer."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from traced_training import (
    ALL,
    COUPLED,
    MODELS,
    batches,
    fit,
    mlp,
    seeded,
    sgd,
    traced,
)
from tracin import Tracer

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("build", [*MODELS.values(), *COUPLED.values()], ids=[*MODELS, *COUPLED])
def test_training_is_the_same_bit_for_bit(tmp_path, build, train, queries):
    def run(is_traced):
        model = seeded(build)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        tracer = (
            Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a", paths=ALL)
            if is_traced
            else None
        )
        for ids in batches(4):
            optimizer.zero_grad()
            if tracer:
                with tracer.batch(ids):
                    loss = F.cross_entropy(model(train[0][ids]), train[1][ids])
            else:
                loss = F.cross_entropy(model(train[0][ids]), train[1][ids])
            loss.backward()
            optimizer.step()
        if tracer:
            tracer.close()
        assert model.training
        return [*model.state_dict().values(), *(p.grad for p in model.parameters()), torch.rand(2)]

    torch.manual_seed(7)
    plain, with_trace = run(False), run(True)
    assert all(torch.equal(one, other) for one, other in zip(plain, with_trace, strict=True))


def test_hooks_are_gone_after_closing(tmp_path, train, queries):
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    with Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a") as tracer:
        fit(tracer, model, optimizer, train, batches(2))
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not model._forward_pre_hooks
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


def test_no_warnings_in_a_plain_run(tmp_path, train, queries):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traced(tmp_path, mlp, sgd, train, queries, batches(3))
