"""Self-influence along the training."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import tracin
from traced_training import (
    CLASSES,
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
from tracin.data import open_examples
from tracin.losses import open_loss
from tracin.tracing.loss_weights import ModelOutputs, UnknownWeightsError, measured_weights

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


def test_self_influence_of_unlike_weights_measures_them(tmp_path, train, queries):
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

    given = run(tmp_path / "b", weights).self_influence()
    assert bool((given >= 0).all())
    assert bool(given.any())
    assert torch.allclose(run(tmp_path / "a", None).self_influence(), given, rtol=1e-9)


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


PARTS = [range(0, 10), range(10, 20), range(20, TRAIN)]  # the last is smaller

# Training losses by what they multiply each example's loss by: (step, ids, labels) -> weights.
WEIGHTS = {
    "a sum with a smaller last batch": lambda step, ids, labels: torch.ones(len(ids)),
    "a mean with a smaller last batch": lambda step, ids, labels: torch.full(
        (len(ids),), 1 / len(ids)
    ),
    "another factor from the second step on": lambda step, ids, labels: torch.full(
        (len(ids),), (0.1 if step else 1.0) / len(ids)
    ),
    "class weights": lambda step, ids, labels: torch.tensor([1.0, 4.0, 0.5])[labels[ids]] / 10,
    "one example apart": lambda step, ids, labels: torch.where(ids == 7, 3.0, 1.0) / len(ids),
    "one example left out": lambda step, ids, labels: torch.where(ids == 7, 0.0, 1.0),
    "one example unlearnt": lambda step, ids, labels: torch.where(ids == 7, -1.0, 1.0),
}


def run(folder, train, weights_of, *, build=mlp, data=None, parts=PARTS, **options):
    """Trains on weighted losses, without saying so; returns the trace and what it should hold."""
    rate, inputs, labels = 0.01, *train
    model, twin_model = seeded(build), seeded(build)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    expected = torch.zeros(TRAIN)
    data = train if data is None else data
    with Tracer(model, optimizer, "cross_entropy", None, data, folder, **options) as tracer:
        for step, part in enumerate(parts):
            ids = torch.tensor(part)
            weights = weights_of(step, ids, labels)
            twin_model.load_state_dict(model.state_dict())
            expected[ids] += rate * weights * own_norms(twin_model, train)[ids]
            optimizer.zero_grad()
            with tracer.batch(ids):
                loss = losses(model, (inputs[ids], labels[ids])) @ weights
            loss.backward()
            optimizer.step()
        return tracer.trace(), expected


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_measured_in_every_step(tmp_path, train, name):
    trace, expected = run(tmp_path / "a", train, WEIGHTS[name])

    assert torch.allclose(trace.self_influence(), expected, rtol=1e-9)


def test_micro_batches_of_several_steps_have_weights_of_their_own(tmp_path, train):
    model, twin_model = seeded(mlp), seeded(mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = torch.zeros(TRAIN)
    with Tracer(model, optimizer, "cross_entropy", None, train, tmp_path / "a") as tracer:
        for group in (range(12), range(12, TRAIN - 2), range(TRAIN - 2, TRAIN)):  # 3, 3 and 1
            micro = torch.tensor(group).split(4)
            twin_model.load_state_dict(model.state_dict())
            norms = own_norms(twin_model, train)
            optimizer.zero_grad()
            for ids in micro:
                expected[ids] += 0.01 * norms[ids] / len(ids) / len(micro)
                with tracer.batch(ids):
                    loss = F.cross_entropy(model(train[0][ids]), train[1][ids]) / len(micro)
                loss.backward()
            optimizer.step()
        assert torch.allclose(tracer.trace().self_influence(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "layer", [lambda: nn.Dropout(0.4), lambda: nn.BatchNorm1d(8)], ids=["dropout", "BatchNorm"]
)
def test_what_is_random_or_batched_in_training_does_not_blur_weights(tmp_path, train, layer):
    inputs, labels = train

    def trace(folder, says):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), layer(), nn.ReLU(), nn.Linear(8, CLASSES))
        optimizer = sgd(model.parameters())
        with Tracer(model, optimizer, "cross_entropy", None, train, folder) as tracer:
            for part in PARTS:
                ids = torch.tensor(part)
                optimizer.zero_grad()
                weights = torch.linspace(0.5, 1, len(ids))
                with tracer.batch(ids, weights if says else None):
                    loss = losses(model, (inputs[ids], labels[ids])) @ weights
                loss.backward()
                optimizer.step()
            return tracer.trace().self_influence()

    said = trace(tmp_path / "a", says=True)
    assert torch.allclose(trace(tmp_path / "b", says=False), said, rtol=1e-9)


class Rolled(Dataset):
    """Examples that are read one by one, by drawing random numbers."""

    def __init__(self, data):
        self.data, self.reads = data, 0

    def __len__(self):
        return len(self.data[0])

    def __getitem__(self, position):
        self.reads += 1
        noise = random.random() + torch.rand(())
        return self.data[0][position] + noise, self.data[1][position]


def test_of_a_dataset_a_few_examples_are_read_and_no_random_number_is_used_up(tmp_path, train):
    data = Rolled(train)
    state = random.getstate(), torch.get_rng_state()
    parts = [range(20), range(20, TRAIN)]
    trace, expected = run(tmp_path / "a", train, WEIGHTS["class weights"], data=data, parts=parts)
    assert random.getstate() == state[0]
    with pytest.raises(tracin.QueryError, match=r"in step 0 .* by 0.05 to 0.4, and only 8 of 20"):
        trace.self_influence()

    name = "a sum with a smaller last batch"
    trace, expected = run(tmp_path / "b", train, WEIGHTS[name], data=Rolled(train), parts=parts)
    assert torch.allclose(trace.self_influence(), expected, rtol=1e-9)
    assert data.reads < 20


def other_loss(model, inputs, labels):
    return F.cross_entropy(model(inputs), labels, label_smoothing=0.1)


def overwritten(model, inputs, labels):
    return F.cross_entropy(model(inputs).mul_(0.5), labels)


@pytest.mark.parametrize(
    ("training_loss", "found"),
    [
        (
            other_loss,
            r"in step 0 the gradient .* is not a multiple of that .* example 0\)",
        ),
        (overwritten, "wrote into the model's outputs"),
    ],
)
def test_where_weights_cannot_be_measured_they_are_asked_for(
    tmp_path, train, queries, training_loss, found
):
    def trace(folder, weights):
        model = seeded(mlp)
        optimizer = sgd(model.parameters())
        with Tracer(model, optimizer, "cross_entropy", queries, train, folder) as tracer:
            for part in PARTS:
                ids = torch.tensor(part)
                optimizer.zero_grad()
                with tracer.batch(ids, None if weights is None else weights[ids]):
                    loss = training_loss(model, train[0][ids], train[1][ids])
                loss.backward()
                optimizer.step()
            tracer.save()
        return tracin.tracing.Trace.open(folder)

    with pytest.raises(tracin.QueryError, match=f"(?s){found}.*tracer.batch\\(ids, weights="):
        trace(tmp_path / "a", None).self_influence()
    assert bool(trace(tmp_path / "b", torch.full((TRAIN,), 0.1)).self_influence().any())
    assert bool(trace(tmp_path / "c", None).influence().any())


def test_a_loss_that_looks_into_the_model_cannot_be_measured(tmp_path, train):
    def inner(model, batch):
        return F.cross_entropy(model[2](torch.tanh(model[0](batch[0]))), batch[1], reduction="none")

    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    ids = torch.arange(6)
    with Tracer(model, optimizer, inner, None, train, tmp_path / "a") as tracer:
        with tracer.batch(ids):
            loss = F.cross_entropy(model(train[0][ids]), train[1][ids])
        loss.backward()
        optimizer.step()
        with pytest.raises(tracin.QueryError, match="could not be computed from the outputs"):
            tracer.trace().self_influence()


@pytest.mark.parametrize(
    ("calls", "found"),
    [
        (0, "no gradient reached an output"),
        (2, "called the model 2 times, and the loss calls it less often"),
    ],
)
def test_a_loss_that_calls_the_model_another_number_of_times_cannot_be_measured(
    train, calls, found
):
    model, outputs, ids = mlp(), ModelOutputs(), torch.arange(6)
    with outputs.watching(model):
        for _ in range(calls):
            F.cross_entropy(model(train[0][ids]), train[1][ids]).backward()
    if not calls:
        with outputs.watching(model):
            model(train[0][ids])

    with pytest.raises(UnknownWeightsError, match=found):
        measured_weights(
            model, open_loss("cross_entropy"), open_examples(train), ids, outputs, scale=1.0, seed=0
        )


class Named(nn.Module):
    """Returns a loss and logits, by name, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x, labels=None):
        logits = self.inner(x)
        loss = None if labels is None else F.cross_entropy(logits, labels, reduction="sum") / 3
        return {"loss": loss, "logits": logits}


def test_a_loss_within_the_model_is_measured_at_its_logits(tmp_path, train):
    model, twin_model = seeded(Named), seeded(Named)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = torch.zeros(TRAIN)
    with Tracer(model, optimizer, "cross_entropy", None, train, tmp_path / "a") as tracer:
        for part in PARTS:
            ids = torch.tensor(part)
            twin_model.load_state_dict(model.state_dict())
            expected[ids] += 0.01 / 3 * own_norms(twin_model.inner, train)[ids]
            optimizer.zero_grad()
            with tracer.batch(ids):
                loss = model(train[0][ids], train[1][ids])["loss"]
            loss.backward()
            optimizer.step()
        assert torch.allclose(tracer.trace().self_influence(), expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_does_not_hide_weights(tmp_path, train, dtype):
    inputs, labels = train[0].to(dtype), train[1]

    def trace(folder, says):
        model = seeded(mlp).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        data = inputs, labels
        with Tracer(model, optimizer, "cross_entropy", None, data, folder) as tracer:
            for epoch in range(40):  # until losses are small, and their gradients rounding
                for part in PARTS:
                    ids = torch.tensor(part)
                    optimizer.zero_grad()
                    weights = torch.full((len(ids),), 0.3 if epoch else 1.0, dtype=torch.float32)
                    with tracer.batch(ids, weights if says else None):
                        loss = losses(model, (inputs[ids], labels[ids])).float() @ weights
                    loss.backward()
                    optimizer.step()
            return tracer.trace().self_influence()

    found, said = trace(tmp_path / "a", says=False), trace(tmp_path / "b", says=True)
    assert torch.allclose(found, said, rtol=1e-4 if dtype == torch.float32 else 2e-2)


def test_unknown_weights_stay_unknown_after_resuming(tmp_path, train):
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    for training_loss in (other_loss, lambda m, x, y: F.cross_entropy(m(x), y)):
        with Tracer(model, optimizer, "cross_entropy", None, train, tmp_path) as tracer:
            ids = torch.arange(6)
            optimizer.zero_grad()
            with tracer.batch(ids):
                loss = training_loss(model, train[0][ids], train[1][ids])
            loss.backward()
            optimizer.step()
    with pytest.raises(tracin.QueryError, match="in step 0"):
        tracin.tracing.Trace.open(tmp_path).self_influence()
