"""A traced training loop against its slow twin: autograd, one example and one step at a time."""

import copy
import math
import signal
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracin
from tracin import Tracer, TracingError, TracingWarning
from tracin.tracing import Quadrature

TRAIN, QUERIES, CLASSES = 24, 5, 3
ALL = (Quadrature.TRAPEZOID, Quadrature.FIRST_ORDER, Quadrature.SIMPSON, Quadrature.MIDPOINT)


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def seeded(build):
    torch.manual_seed(0)
    return build()


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.scale = nn.Parameter(torch.randn(6, CLASSES)), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return (x * self.scale) @ self.w


class Words(nn.Module):
    """Attention over embedded words, a tied table, LayerNorm: what a language model is made of."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x):
        words = (x.abs() * 10).long() % 7
        hidden = self.table(words)
        hidden = self.norm(hidden + self.attention(hidden, hidden, hidden)[0])
        return self.head(F.linear(hidden, self.table.weight).mean(1))


class Pictures(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 2), norm, nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x.view(-1, 1, 2, 3)))).flatten(1))


def weight_norm():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, CLASSES)))


MODELS = {
    "mlp": mlp,
    "linear": lambda: nn.Linear(6, CLASSES),
    "used twice": Twice,
    "raw parameters": Raw,
    "attention, tied table": Words,
    "convolution, GroupNorm": lambda: Pictures(nn.GroupNorm(1, 3)),
    "weight_norm": weight_norm,
    "in-place ReLU": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES)
    ),
}
COUPLED = {
    "BatchNorm in train mode": lambda: Pictures(nn.BatchNorm2d(3)),
    "BatchNorm1d": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)
    ),
    "dropout": lambda: nn.Sequential(
        nn.Linear(6, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, CLASSES)
    ),
}


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


def batches(steps, size=4, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(TRAIN, generator=generator)[:size] for _ in range(steps)]


def losses(model, data):
    return F.cross_entropy(model(data[0]), data[1], reduction="none")


def query_gradients(model, queries):
    """Each query's gradient in eval mode, flat: [queries, numbers]."""
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    each = losses(model, queries)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
        for loss in each
    ]
    for module, mode in was:
        module.training = mode
    return torch.stack(rows)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def put(model, weights):
    start = 0
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(weights[start : start + p.numel()].view_as(p))
                start += p.numel()


def fit(tracer, model, optimizer, train, rows, after_backward=None, penalty=0.0):
    """A plain loop."""
    inputs, labels = train
    for ids in rows:
        optimizer.zero_grad()
        with tracer.batch(ids):
            loss = F.cross_entropy(model(inputs[ids]), labels[ids])
            if penalty:
                loss = loss + penalty * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        if after_backward:
            after_backward(model)
        optimizer.step()


def real_products(model, queries, move):
    """q(w_t) . (w_t - w_{t+1}) for each step of `move`, which is called with a callback."""
    found = []

    def around(step):
        before, gradients = flat(model), query_gradients(model, queries)
        step()
        found.append(gradients @ (before - flat(model)))

    move(around)
    return torch.stack(found)


class Listening:
    """Wraps optimizer.step, and notes q(w_t) . (w_t - w_{t+1}) of each."""

    def __init__(self, model, optimizer, queries):
        self.found = []
        plain = optimizer.step

        def step(*args, **kwargs):
            before, gradients = flat(model), query_gradients(model, queries)
            result = plain(*args, **kwargs)
            self.found.append(gradients @ (before - flat(model)))
            return result

        self.step = step


def gap(trace, listening, path=Quadrature.FIRST_ORDER):
    real = torch.stack(listening.found).numpy()
    parts = ("examples", "weight_decay", "momentum", "unattributed")
    predicted = np.sum([trace.steps.part(path, part) for part in parts], axis=0)
    return np.abs(predicted - real).max() / np.abs(real).max()


def traced(tmp_path, build, make, train, queries, rows, paths=ALL, **more):
    """Train with a Tracer; gives its trace, and what the steps really were."""
    options = {key: more.pop(key) for key in ("after_backward", "penalty") if key in more}
    model = seeded(build)
    optimizer = make(model.parameters())
    listening = Listening(model, optimizer, queries)
    stepping = copy.copy(optimizer)
    stepping.step = listening.step
    with Tracer(
        model, optimizer, "cross_entropy", queries, train, tmp_path / "trace", paths=paths, **more
    ) as tracer:
        fit(tracer, model, stepping, train, rows, **options)
        return tracer.trace(), listening


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


# --- scores against the twin ---------------------------------------------------------------------


def twin(model, train, queries, rows, rate, path):
    """(eta / b) g(z) . the query's gradient along the step, summed over an example's steps."""
    scores = torch.zeros(TRAIN, QUERIES)
    inputs, labels = train
    for ids in rows:
        own = []
        for i in ids.tolist():
            loss = F.cross_entropy(model(inputs[i : i + 1]), labels[i : i + 1])
            grads = torch.autograd.grad(loss, list(model.parameters()))
            own.append(torch.cat([g.flatten() for g in grads]))
        own = torch.stack(own)
        before = flat(model)
        after = before - rate * own.mean(0)
        for position, weight in path.points:
            put(model, torch.lerp(before, after, position))
            products = own @ query_gradients(model, queries).T
            scores.index_add_(0, ids, weight * rate / len(ids) * products)
        put(model, after)
    return scores


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


# --- what optimizers do --------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD, Nesterov, foreach": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, foreach=True
    ),
    "SGD, maximize, foreach": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.9, nesterov=True, maximize=True, foreach=True
    ),
    "Adam, foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True, amsgrad=True),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True, weight_decay=0.1),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, amsgrad=True),
    "Adagrad, fused": lambda p: torch.optim.Adagrad(p, lr=0.05, fused=True, maximize=True),
    "RMSprop, foreach": lambda p: torch.optim.RMSprop(
        p, lr=0.01, momentum=0.8, maximize=True, foreach=True
    ),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD, weight decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD, dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.3),
    "SGD, all": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05
    ),
    "SGD, not foreach": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, weight_decay=0.05, foreach=False
    ),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "SGD, maximize": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True
    ),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam, L2": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "Adam, AMSGrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, betas=(0.8, 0.9)),
    "Adam, no first moment": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.9)),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "Adam, rate in a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "Adam, maximize": lambda p: torch.optim.Adam(p, lr=0.01, maximize=True, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.1),
    "RMSprop, all": lambda p: torch.optim.RMSprop(
        p, lr=0.01, weight_decay=0.1, centered=True, momentum=0.8
    ),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_examples_and_own_terms_are_the_real_step(tmp_path, make, train, queries):
    """Method E4: the prediction with the real w_t - w_{t+1}, to float precision."""
    trace, listening = traced(tmp_path, mlp, make, train, queries, batches(12))
    assert gap(trace, listening) < 1e-12
    assert np.abs(trace.steps.part(Quadrature.FIRST_ORDER, "unattributed")).max() == 0


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_paths_follow_the_real_loss_for_every_optimizer(tmp_path, make, train, queries):
    trace, _ = traced(tmp_path, mlp, make, train, queries, batches(12))
    found = trace.goodness(Quadrature.SIMPSON)
    assert found.conservation_ratio == pytest.approx(1, abs=2e-3)
    assert found.lemma_gap < 1e-12
    assert found.follows
    assert found.amounts_hold


@pytest.mark.parametrize("name", ["SGD, all", "AdamW"])
@pytest.mark.parametrize("build", [MODELS[n] for n in ("attention, tied table", "weight_norm")])
def test_other_layers_under_other_optimizers(tmp_path, name, build, train, queries):
    trace, listening = traced(tmp_path, build, OPTIMIZERS[name], train, queries, batches(6))
    assert gap(trace, listening) < 1e-9


def test_long_momentum_gives_examples_their_whole_weight(tmp_path, train, queries):
    """What is carried over comes and goes: with a constant query gradient it is gone at the end."""
    model = seeded(lambda: nn.Linear(6, CLASSES, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    none = torch.zeros(1, dtype=torch.int64)
    with Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a") as tracer:
        fit(tracer, model, optimizer, train, [torch.arange(4)])
        for _ in range(200):  # nothing is learnt any more, what was learnt rolls on
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


# --- the checks of the paper ---------------------------------------------------------------------


def test_ideal_is_exact_and_conserved(tmp_path, train, queries):
    rows = [ids[:1] for ids in batches(15)]
    trace, _ = traced(tmp_path, mlp, sgd, train, queries, rows)
    model = seeded(mlp)
    start = losses(model, queries)
    expected = torch.zeros(TRAIN, QUERIES)
    optimizer = sgd(model.parameters())
    for ids in rows:
        before = losses(model, queries).detach()
        optimizer.zero_grad()
        F.cross_entropy(model(train[0][ids]), train[1][ids]).backward()
        optimizer.step()
        expected[ids] += before - losses(model, queries).detach()
    ideal = trace.ideal()
    assert torch.allclose(ideal, expected, atol=1e-14)
    assert torch.allclose(ideal.sum(0), start - losses(model, queries), atol=1e-13)
    unseen = sorted(set(range(TRAIN)) - {int(ids) for ids in rows})
    assert unseen
    assert not ideal[unseen].any()
    assert not trace.influence()[unseen].any()


def test_ideal_of_larger_batches_is_not_split(tmp_path, train, queries):
    trace, _ = traced(tmp_path, mlp, sgd, train, queries, batches(3))
    with pytest.raises(tracin.QueryError, match="cannot be split among them"):
        trace.ideal()
    assert trace.goodness().lemma_gap < 1e-12


def test_a_step_without_a_rate_adds_nothing(tmp_path, train, queries):
    trace, _ = traced(
        tmp_path, mlp, lambda p: torch.optim.SGD(p, lr=0.0), train, queries, batches(2, size=1)
    )
    assert not trace.ideal().any()
    assert not trace.influence().any()


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


def test_goodness_says_what_to_make_of_it(tmp_path, train, queries):
    fine, _ = traced(tmp_path / "a", mlp, sgd, train, queries, batches(10))
    assert "amounts too" in str(fine.goodness())
    wild, _ = traced(
        tmp_path / "b", mlp, lambda p: torch.optim.SGD(p, lr=30.0), train, queries, batches(10)
    )
    found = wild.goodness(Quadrature.FIRST_ORDER)
    assert "may not" in found.verdict or "Do not trust" in found.verdict
    assert not found.amounts_hold
    fine.goodness().plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    predicted, real = fine.goodness().totals
    assert predicted.shape == real.shape == (QUERIES,)
    assert fine.goodness().residuals.shape == (10,)


def test_goodness_has_words_for_what_it_cannot_judge(tmp_path, train, queries):
    still, _ = traced(
        tmp_path / "a", mlp, lambda p: torch.optim.SGD(p, lr=0.0), train, queries, batches(2)
    )
    assert "Nothing can be said" in still.goodness().verdict
    decayed, _ = traced(
        tmp_path / "b", mlp, OPTIMIZERS["SGD, weight decay"], train, queries, batches(5)
    )
    assert "weight_decay, which belong to no example" in decayed.goodness().verdict
    steps = decayed.steps
    broken = steps.rows.copy()
    broken[2, 3 : 3 + QUERIES] += 1  # the losses before a step are not those after the one before
    from tracin.tracing.diagnostics import goodness_of
    from tracin.tracing.step_table import Steps

    gone = goodness_of(Steps(broken, QUERIES, steps.paths), Quadrature.TRAPEZOID)
    assert "Lemma 3.1" in gone.verdict
    assert "Do not trust" in gone.verdict


# --- self-influence ------------------------------------------------------------------------------


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


# --- the user's world ----------------------------------------------------------------------------


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


# --- results -------------------------------------------------------------------------------------


def test_explanations_are_the_top_and_bottom(tmp_path, train, queries):
    named = tracin.WithIds(train, [f"image {i}" for i in range(TRAIN)])
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    with Tracer(model, optimizer, "cross_entropy", queries, named, tmp_path / "a") as tracer:
        for ids in batches(6):
            optimizer.zero_grad()
            with tracer.batch([f"image {i}" for i in ids.tolist()]):
                loss = F.cross_entropy(model(train[0][ids]), train[1][ids])
            loss.backward()
            optimizer.step()
    trace = tracin.tracing.Trace.open(tmp_path / "a")
    scores = trace.influence()
    found = trace.explain(k=4)
    assert torch.equal(found.top(4).scores, scores.topk(4, dim=0).values.T)
    assert torch.equal(found.bottom(4).scores, -(-scores).topk(4, dim=0).values.T)
    assert str(found.top(1).ids[0, 0]).startswith("image ")
    assert trace.query_ids.tolist() == list(range(QUERIES))


# --- saved and resumed ---------------------------------------------------------------------------


def test_a_broken_run_resumes_to_the_same_result(tmp_path, train, queries):
    rows = batches(9)
    make = OPTIMIZERS["AdamW"]
    whole, _ = traced(tmp_path / "a", mlp, make, train, queries, rows)

    model = seeded(mlp)
    optimizer = make(model.parameters())
    tracer = Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "b", paths=ALL)
    fit(tracer, model, optimizer, train, rows[:4])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    tracer.save()
    fit(tracer, model, optimizer, train, rows[4:6])  # lost in the crash
    tracer._stop(is_broken=True)

    model = seeded(mlp)
    optimizer = make(model.parameters())
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    with Tracer(
        model, optimizer, "cross_entropy", queries, train, tmp_path / "b", paths=ALL
    ) as tracer:
        fit(tracer, model, optimizer, train, rows[4:])
        found = tracer.trace()
    for path in ALL:
        assert torch.equal(found.influence(path), whole.influence(path))
    assert torch.equal(found.self_influence(), whole.self_influence())
    assert np.array_equal(np.array(found.steps.rows), np.array(whole.steps.rows))


KILLED = """
import os, signal, sys
import torch
from torch import nn
from torch.nn import functional as F
import tracin

folder, dies = sys.argv[1], int(sys.argv[2])
torch.set_default_dtype(torch.float32)
torch.set_num_threads(1)
torch.manual_seed(0)
inputs, labels = torch.randn(24, 6), torch.randint(3, (24,))
model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
rows = torch.stack([torch.randperm(24)[:4] for _ in range(9)])
own = folder + ".pt"
start = 0
if os.path.exists(own):
    saved = torch.load(own)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"])
    start = saved["step"]
queries = inputs[:3] + 0.1, labels[:3]
with tracin.Tracer(model, optimizer, "cross_entropy", queries, (inputs, labels), folder) as tracer:
    for step in range(start, 9):
        optimizer.zero_grad()
        with tracer.batch(rows[step]):
            loss = F.cross_entropy(model(inputs[rows[step]]), labels[rows[step]])
        loss.backward()
        if step == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()
        if step % 3 == 2:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "random": torch.get_rng_state(), "step": step + 1}, own)
            tracer.save()
"""


def test_a_killed_process_resumes_to_the_same_result(tmp_path, monkeypatch):
    def run(name):
        monkeypatch.setattr(sys, "argv", ["", str(tmp_path / name), "-1"])
        exec(KILLED, {})

    words = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), "5"]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    run("killed")
    run("whole")
    whole, killed = (tracin.tracing.Trace.open(tmp_path / name) for name in ("whole", "killed"))
    assert torch.equal(whole.influence(), killed.influence())
    assert torch.equal(whole.self_influence(), killed.self_influence())
    assert np.array_equal(whole.steps.rows, killed.steps.rows)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells memory there")
def test_scores_stay_on_the_disk(tmp_path, queries):
    """[train, queries] floats are never held: two paths of 40 MB here, and a save of both."""

    class Many(torch.utils.data.Dataset):
        def __len__(self):
            return 2_000_000

        def __getitem__(self, index):
            return torch.full((6,), index / len(self)), torch.tensor(index % CLASSES)

    def held():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    many = Many()
    with Tracer(model, optimizer, "cross_entropy", queries, many, tmp_path / "a") as tracer:
        before = held()
        for end in range(len(many), 0, -400_000):
            ids = torch.arange(end - 1000, end)
            optimizer.zero_grad()
            with tracer.batch(ids):
                batch = [many[i] for i in ids.tolist()]
                loss = F.cross_entropy(
                    model(torch.stack([x for x, _ in batch])), torch.stack([y for _, y in batch])
                )
            loss.backward()
            optimizer.step()
        tracer.save()
        assert held() - before < 30  # MB


def begun(folder, train, queries):
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    with Tracer(model, optimizer, "cross_entropy", queries, train, folder) as tracer:
        fit(tracer, model, optimizer, train, batches(2))
    return model, optimizer


def test_resumed_with_another_optimizer(tmp_path, train, queries):
    model, _ = begun(tmp_path / "a", train, queries)
    with pytest.raises(TracingError, match=r"optimizer changed \(was 'SGD', now 'Adam'\)"):
        Tracer(
            model,
            torch.optim.Adam(model.parameters()),
            "cross_entropy",
            queries,
            train,
            tmp_path / "a",
        )


def test_resumed_with_other_queries(tmp_path, train, queries):
    model, optimizer = begun(tmp_path / "a", train, queries)
    other = (queries[0] + 1, queries[1])
    with pytest.raises(TracingError, match="the queries changed"):
        Tracer(model, optimizer, "cross_entropy", other, train, tmp_path / "a")


def test_resumed_with_more_or_fewer_data(tmp_path, train, queries):
    model, optimizer = begun(tmp_path / "a", train, queries)
    fewer = (train[0][:-1], train[1][:-1])
    with pytest.raises(
        TracingError, match=r"number of training examples changed \(was 24, now 23\)"
    ):
        Tracer(model, optimizer, "cross_entropy", queries, fewer, tmp_path / "a")


def test_resumed_with_other_parameters(tmp_path, train, queries):
    model, optimizer = begun(tmp_path / "a", train, queries)
    with pytest.raises(TracingError, match=r"choice of parameters changed.*'2\.\*'"):
        Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a", parameters="2.*")


def test_resumed_with_other_weights(tmp_path, train, queries):
    begun(tmp_path / "a", train, queries)
    model = mlp()  # without the seed
    optimizer = sgd(model.parameters())
    tracer = Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a")
    with pytest.raises(TracingError, match="saved after 0 and 2 steps, but the model holds other"):
        fit(tracer, model, optimizer, train, batches(1))


def test_a_finished_trace_is_not_begun_anew(tmp_path, train, queries):
    begun(tmp_path / "a", train, queries)
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    tracer = Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a")
    with pytest.raises(TracingError, match="holds the finished trace of 2 steps"):
        fit(tracer, model, optimizer, train, batches(1))
    assert len(tracin.tracing.Trace.open(tmp_path / "a").steps) == 2


def test_a_cut_off_file_is_told(tmp_path, train, queries):
    model, optimizer = begun(tmp_path / "a", train, queries)
    path = tmp_path / "a" / "steps.f64"
    path.write_bytes(path.read_bytes()[:-8])
    tracer = Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a")
    with pytest.raises(TracingError, match="does not hold the 2 steps"):
        fit(tracer, model, optimizer, train, batches(1))


# --- bad input -----------------------------------------------------------------------------------


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
        pytest.raises(TracingError, match="thrown away"),
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
    with pytest.raises(TracingError, match=r"'cell\.\w+' is used in .*lstm.*Leave it out"):
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


def test_a_folder_without_a_trace(tmp_path):
    with pytest.raises(TracingError, match="holds no trace"):
        tracin.tracing.Trace.open(tmp_path)


def test_a_path_that_was_not_traced(tmp_path, train, queries):
    trace, _ = traced(
        tmp_path, mlp, sgd, train, queries, batches(1), paths=[Quadrature.FIRST_ORDER]
    )
    with pytest.raises(tracin.QueryError, match="holds FIRST_ORDER"):
        trace.influence(Quadrature.SIMPSON)


def test_no_warnings_in_a_plain_run(tmp_path, train, queries):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traced(tmp_path, mlp, sgd, train, queries, batches(3))


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
