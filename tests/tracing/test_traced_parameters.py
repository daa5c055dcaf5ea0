"""Parameters that are left out, frozen, unfrozen, or in groups of their own."""

import copy

import pytest
import torch

from traced_training import (
    ALL,
    Listening,
    batches,
    fit,
    gap,
    losses,
    mlp,
    seeded,
    sgd,
    traced,
)
from tracin import Tracer, TracingError
from tracin.tracing import Quadrature

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("more", [{}, {"queries_at_once": 2}, {"every": 2}])
def test_some_parameters_score_as_their_part_of_all(tmp_path, more, train, queries):
    """Also at the step's start, where the other parameters must stand as well."""
    rows = batches(4)
    parts = [
        traced(tmp_path / str(at), mlp, sgd, train, queries, rows, parameters=names, **more)[0]
        for at, names in enumerate([None, ["0.*"], ["2.*"]])
    ]
    for path in (Quadrature.FIRST_ORDER, Quadrature.TRAPEZOID):
        whole, first, last = (part.influence(path) for part in parts)
        assert torch.allclose(whole, first + last, atol=1e-7)
    assert "not traced" in parts[1].goodness().verdict


def test_schedules_and_groups_and_unfreezing(tmp_path, train, queries):
    model = seeded(mlp)
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "lr": 0.02},
            {"params": model[2].parameters(), "lr": 0.01, "weight_decay": 0.0},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    found = []
    with Tracer(
        model, optimizer, "cross_entropy", queries, train, tmp_path / "a", paths=ALL
    ) as tracer:
        for number, ids in enumerate(batches(8)):
            model[0].requires_grad_(number >= 4)
            listening = Listening(model, optimizer, queries)
            stepping = copy.copy(optimizer)
            stepping.step = listening.step
            fit(tracer, model, stepping, train, [ids])
            found += listening.found
            schedule.step()
        trace = tracer.trace()
    listening.found = found
    assert gap(trace, listening) < 1e-12


def test_a_frozen_parameter_that_still_moves_is_refused(tmp_path, train, queries):
    model = seeded(mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a") as tracer:
        fit(tracer, model, optimizer, train, batches(2))
        model[0].weight.requires_grad_(False)
        optimizer.zero_grad(set_to_none=False)
        with tracer.batch(torch.arange(4)):
            loss = losses(model, (train[0][:4], train[1][:4])).mean()
        loss.backward()
        with pytest.raises(TracingError, match=r"'0\.weight' does not require.*grad = None"):
            optimizer.step()
        model[0].weight.grad = None
        optimizer.step()
        assert tracer.step == 3
