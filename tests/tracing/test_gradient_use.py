"""What happens to a gradient between backward pass and optimizer: clipping, noise, scaling."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from traced_training import (
    OPTIMIZERS,
    Listening,
    batches,
    fit,
    gap,
    mlp,
    seeded,
    sgd,
    traced,
)
from tracin import Tracer, TracingWarning
from tracin.tracing import Quadrature

pytestmark = pytest.mark.usefixtures("float64")


def test_clipping_by_norm(tmp_path, train, queries):
    trace, listening = traced(
        tmp_path,
        mlp,
        sgd,
        train,
        queries,
        batches(6),
        after_backward=lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.05),
    )
    assert gap(trace, listening) < 1e-9
    assert np.abs(trace.steps.part(Quadrature.FIRST_ORDER, "unattributed")).max() == 0


def test_clipping_by_value(tmp_path, train, queries):
    trace, listening = traced(
        tmp_path,
        mlp,
        sgd,
        train,
        queries,
        batches(6),
        after_backward=lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.02),
    )
    assert gap(trace, listening) < 1e-9
    assert np.abs(trace.steps.part(Quadrature.FIRST_ORDER, "unattributed")).max() == 0


def test_noise_on_gradients_is_nobodys(tmp_path, train, queries):
    def add_noise(model):
        for p in model.parameters():
            p.grad += 0.05 * torch.randn_like(p)

    with pytest.warns(TracingWarning, match="came from no traced batch"):
        trace, listening = traced(
            tmp_path, mlp, sgd, train, queries, batches(6), after_backward=add_noise
        )
    assert gap(trace, listening) < 1e-9
    assert np.abs(trace.steps.part(Quadrature.FIRST_ORDER, "unattributed")).max() > 0


def test_a_penalty_in_the_loss_is_nobodys(tmp_path, train, queries):
    with pytest.warns(TracingWarning, match="penalty in the loss"):
        trace, listening = traced(tmp_path, mlp, sgd, train, queries, batches(6), penalty=0.05)
    assert gap(trace, listening) < 1e-9
    decayed, _ = traced(
        tmp_path / "b",
        mlp,
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
        train,
        queries,
        batches(6),
    )
    assert torch.allclose(trace.influence(), decayed.influence(), atol=1e-9)
    assert np.allclose(
        trace.steps.part(Quadrature.TRAPEZOID, "unattributed"),
        decayed.steps.part(Quadrature.TRAPEZOID, "weight_decay"),
    )


@pytest.mark.parametrize("name", ["SGD, Nesterov, foreach", "AdamW, fused"])
def test_clipping_before_an_optimizer_that_writes_into_gradients(tmp_path, name, train, queries):
    trace, listening = traced(
        tmp_path,
        mlp,
        OPTIMIZERS[name],
        train,
        queries,
        batches(14),
        after_backward=lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.05),
    )
    assert gap(trace, listening) < 1e-9
    assert np.abs(trace.steps.part(Quadrature.FIRST_ORDER, "unattributed")).max() == 0


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_fused_optimizers_that_unscale_on_their_own(tmp_path, kind, train, queries):
    torch.set_default_dtype(torch.float32)
    train, queries = (train[0].float(), train[1]), (queries[0].float(), queries[1])
    model = seeded(mlp)
    optimizer = kind(model.parameters(), lr=0.05, fused=True)
    listening = Listening(model, optimizer, queries)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Tracer(
        model, optimizer, "cross_entropy", queries, train, tmp_path / "a", scaler=scaler
    ) as tracer:
        optimizer.step = listening.step
        for ids in batches(5):
            optimizer.zero_grad()
            with tracer.batch(ids):
                loss = F.cross_entropy(model(train[0][ids]), train[1][ids])
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        trace = tracer.trace()
    assert gap(trace, listening) < 1e-5


def test_mixed_precision_scaling_and_skipped_steps(tmp_path, train, queries):
    torch.set_default_dtype(torch.float32)
    train, queries = (train[0].float(), train[1]), (queries[0].float(), queries[1])
    inputs, labels = train
    rows = batches(6)

    def train_with(tracer, model, optimizer, scaler, bad):
        for number, ids in enumerate(rows):
            optimizer.zero_grad()
            with tracer.batch(ids):
                loss = F.cross_entropy(model(inputs[ids]), labels[ids])
            scaler.scale(loss * (math.inf if number in bad else 1)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()

    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    with Tracer(
        model, optimizer, "cross_entropy", queries, train, tmp_path / "a", scaler=scaler
    ) as tracer:
        train_with(tracer, model, optimizer, scaler, bad={3})
        found = tracer.trace()
    assert tracer.step == 5
    assert found.save.skipped == 1

    kept = [ids for number, ids in enumerate(rows) if number != 3]
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    with Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "b") as tracer:
        fit(
            tracer,
            model,
            optimizer,
            train,
            kept,
            lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
        )
        plain = tracer.trace()
    assert torch.allclose(found.influence(), plain.influence(), rtol=1e-3, atol=1e-6)
    assert torch.allclose(found.self_influence(), plain.self_influence(), rtol=1e-3)
