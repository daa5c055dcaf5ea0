"""Every optimizer's step is taken apart exactly."""

import numpy as np
import pytest
import torch
from torch import nn

import tracin
from traced_training import (
    CLASSES,
    MODELS,
    OPTIMIZERS,
    batches,
    fit,
    gap,
    mlp,
    seeded,
    traced,
)
from tracin import Tracer, TracingError
from tracin.tracing import Quadrature

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_are_taken_apart_and_paths_follow_the_real_loss(tmp_path, make, train, queries):
    """Method E4: the prediction with the real w_t - w_{t+1}, to float precision."""
    trace, listening = traced(tmp_path, mlp, make, train, queries, batches(8))

    assert gap(trace, listening) < 1e-12
    assert np.abs(trace.steps.part(Quadrature.FIRST_ORDER, "unattributed")).max() == 0
    found = trace.goodness(Quadrature.SIMPSON)
    assert found.conservation_ratio == pytest.approx(1, abs=2e-3)
    assert found.lemma_gap < 1e-12
    assert found.correlates
    assert found.magnitudes_reliable


@pytest.mark.parametrize("name", ["SGD, all", "AdamW"])
@pytest.mark.parametrize("build", [MODELS[n] for n in ("attention, tied table", "weight_norm")])
def test_other_layers_under_other_optimizers(tmp_path, name, build, train, queries):
    trace, listening = traced(tmp_path, build, OPTIMIZERS[name], train, queries, batches(4))
    assert gap(trace, listening) < 1e-9


def test_long_momentum_gives_examples_their_whole_weight(tmp_path, train, queries):
    """What is carried over comes and goes: with a constant query gradient it is gone at the end."""
    model = seeded(lambda: nn.Linear(6, CLASSES, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    none = torch.zeros(1, dtype=torch.int64)
    with Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a") as tracer:
        fit(tracer, model, optimizer, train, [torch.arange(4)])
        for _ in range(120):  # nothing is learnt any more, what was learnt rolls on
            optimizer.zero_grad()
            with tracer.batch(none):
                loss = 0.0 * model(train[0][none]).sum()
            loss.backward()
            optimizer.step()
        steps = tracer.trace().steps
    examples = steps.part(Quadrature.TRAPEZOID, "examples").sum(0)
    carried = steps.part(Quadrature.TRAPEZOID, "momentum").sum(0)
    assert np.abs(carried).max() < 1e-3 * np.abs(examples).max()
    assert np.allclose(examples, steps.actual.sum(0), rtol=1e-3)


def test_a_new_optimizer_is_one_function(tmp_path, train, queries):
    class Halved(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p -= 0.5 * group["lr"] * p.grad

    def make(parameters):
        return Halved(parameters, lr=0.2)

    with pytest.raises(TracingError, match="no update rule for the optimizer Halved"):
        traced(tmp_path / "a", mlp, make, train, queries, batches(2))

    @tracin.tracing.update_rule(Halved)
    def halved(step):
        return tracin.tracing.Update(0.5 * step.option("lr"))

    trace, listening = traced(tmp_path / "b", mlp, make, train, queries, batches(4))
    assert gap(trace, listening) < 1e-12
