"""What a Tracer refuses, each with the way out."""

import copy

import pytest
import torch
from torch import nn

import tracin
from traced_training import (
    CLASSES,
    TRAIN,
    batches,
    fit,
    flat,
    losses,
    mlp,
    seeded,
    sgd,
)
from tracin import Tracer, TracingError

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("ids", [None, [], torch.zeros(0, dtype=torch.int64)])
def test_ids_missing(loop, ids):
    with pytest.raises(TracingError, match="ids are missing"), loop[2].batch(ids):
        pass


@pytest.mark.parametrize("ids", [[TRAIN], [-1], ["a"], [1.5], torch.tensor([TRAIN + 3])])
def test_ids_not_seen_before(loop, ids):
    with (
        pytest.raises(TracingError, match="is not of the 24 training examples"),
        loop[2].batch(ids),
    ):
        pass


@pytest.mark.parametrize("ids", [[3, 5, 3], torch.tensor([3, 5, 3])])
def test_ids_repeated_within_a_batch(loop, ids):
    with (
        pytest.raises(TracingError, match=r"The id 3 comes 2 times in one batch.*repeats=True"),
        loop[2].batch(ids),
    ):
        pass


def test_a_closure_is_refused(loop, train):
    _, optimizer, _ = loop
    with pytest.raises(TracingError, match=r"optimizer\.step\(closure\).*without a closure"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize("said", [3, 8])
def test_another_number_of_ids_than_examples(loop, train, said):
    model, _, tracer = loop
    with (
        pytest.raises(TracingError, match=f"{said} ids were given, but within the block"),
        tracer.batch(torch.arange(said)),
    ):
        model(train[0][:4])


def test_a_step_without_a_traced_batch(loop, train):
    model, optimizer, _ = loop
    losses(model, train).mean().backward()
    before = flat(model)
    with pytest.raises(TracingError, match=r"without a traced batch.*tracer\.batch\(ids\)"):
        optimizer.step()
    assert torch.equal(before, flat(model))


def test_a_batch_without_a_step(loop, train):
    model, optimizer, tracer = loop
    with tracer.batch(torch.arange(4)):
        loss = losses(model, (train[0][:4], train[1][:4])).mean()
    loss.backward()
    optimizer.zero_grad()
    with (
        pytest.raises(TracingError, match="discarded"),
        tracer.batch(torch.arange(4)),
    ):
        pass


def test_a_last_batch_without_a_step(loop, train):
    model, _, tracer = loop
    with tracer.batch(torch.arange(4)):
        loss = losses(model, (train[0][:4], train[1][:4])).mean()
    loss.backward()
    with pytest.raises(TracingError, match=r"not followed by optimizer\.step"):
        tracer.close()


def test_a_model_changed_between(loop, train):
    model, optimizer, tracer = loop
    fit(tracer, model, optimizer, train, batches(1))
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(TracingError, match=r"changed between two traced steps: .0\.weight"):
        fit(tracer, model, optimizer, train, batches(1))


def test_weights_swapped_and_put_back_are_fine(loop, train):
    model, optimizer, tracer = loop
    fit(tracer, model, optimizer, train, batches(1))
    kept = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[0].weight += 1
    model.load_state_dict(kept)
    fit(tracer, model, optimizer, train, batches(1))
    assert tracer.step == 2


def test_queries_without_numbers(tmp_path, train, queries):
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    nowhere = (queries[0].to("meta"), queries[1].to("meta"))
    tracer = Tracer(model, optimizer, "cross_entropy", nowhere, train, tmp_path / "a")
    with pytest.raises(tracin.DeviceError, match="meta"):
        fit(tracer, model, optimizer, train, batches(1))


def test_a_model_called_twice_in_one_block_is_said(loop, train):
    model, optimizer, tracer = loop
    inputs, labels = train[0][:8], train[1][:8]
    optimizer.zero_grad()
    with tracer.batch(torch.arange(8)):
        loss = nn.functional.cross_entropy(model(inputs) + model(0.9 * inputs), labels)
    loss.backward()
    with pytest.raises(TracingError, match=r"is called more often than in the loss.*one call"):
        optimizer.step()


def test_a_layer_without_a_rule_is_named(tmp_path, train, queries):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.head(self.cell(x.view(-1, 3, 2))[0][:, -1])

    model = seeded(Recurrent)
    optimizer = sgd(model.parameters())
    tracer = Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a")
    with pytest.raises(TracingError, match=r"'cell\.\w+' cannot be .*lstm has no rule.*leave the"):
        fit(tracer, model, optimizer, train, batches(1))

    model = seeded(Recurrent)
    optimizer = sgd(model.parameters())
    with Tracer(
        model, optimizer, "cross_entropy", queries, train, tmp_path / "b", parameters="head.*"
    ) as tracer:
        fit(tracer, model, optimizer, train, batches(2))
        assert tracer.trace().influence().abs().sum() > 0


def test_a_forward_pass_outside_of_the_block(loop, train):
    model, optimizer, tracer = loop
    with tracer.batch(torch.arange(4)):
        pass
    losses(model, (train[0][:4], train[1][:4])).mean().backward()
    with pytest.raises(TracingError, match="comes from no traced forward pass"):
        optimizer.step()


def test_wrapped_models_are_refused(tmp_path, train, queries):
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    with pytest.raises(tracin.UnsupportedModelError, match="uncompiled"):
        Tracer(torch.compile(model), optimizer, "cross_entropy", queries, train, tmp_path / "a")


@pytest.mark.parametrize("wrong", [{"every": 0}, {"queries_at_once": 0}, {"every": True}])
def test_wrong_counts(tmp_path, train, queries, wrong):
    model = seeded(mlp)
    with pytest.raises(TracingError, match=f"{next(iter(wrong))} is a whole number"):
        Tracer(
            model,
            sgd(model.parameters()),
            "cross_entropy",
            queries,
            train,
            tmp_path / "a",
            **wrong,
        )


def test_no_paths(tmp_path, train, queries):
    model = seeded(mlp)
    with pytest.raises(TracingError, match="paths are some of"):
        Tracer(
            model, sgd(model.parameters()), "mse", queries, train, tmp_path / "a", paths=["first"]
        )
