"""Live steps are audited: an example's share is its own, or the step is refused."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracin
from tracin import Tracer, TracingError, TracingWarning
from tracin.tracing import Trace

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def by_length(x):
    return np.argsort(-x[:, 0].numpy(), kind="stable")


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class SortedByNumpy(Body):
    def forward(self, x):
        order = by_length(x)
        return super().forward(x[order])[np.argsort(order)]


class SortedByLists(Body):
    def forward(self, x):
        order = by_length(x).tolist()
        back = np.argsort(order).tolist()
        rows = super().forward(torch.stack([x[at] for at in order]))
        return torch.stack([rows[at] for at in back])


class Moved(torch.autograd.Function):
    """A kernel of somebody's own: no torch function is seen to move rows."""

    @staticmethod
    def forward(ctx, rows, order):
        ctx.order = order
        return torch.from_numpy(rows.numpy()[order])

    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(grad.numpy()[np.argsort(ctx.order)]), None


class SortedUnseen(Body):
    def forward(self, x):
        order = by_length(x)
        return Moved.apply(super().forward(Moved.apply(x, order)), np.argsort(order))


class SortedInTraining(SortedUnseen):
    def forward(self, x):
        return super().forward(x) if self.training else Body.forward(self, x)


class ClampedOutliers(SortedByNumpy):
    """Writes into its batch as well."""

    def forward(self, x):
        x.clamp_(-1, 1)
        return super().forward(x)


class LossWithin(SortedUnseen):
    def forward(self, x, y=None):
        out = super().forward(x)
        return out if y is None else F.cross_entropy(out, y)


def traced(model, folder, call=None, steps=4, data=(X, Y), **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Tracer(model, optimizer, "cross_entropy", data, data, folder, **options) as tracer:
        for _ in range(steps):
            optimizer.zero_grad()
            with tracer.batch(range(len(data[0]))):
                loss = call(model) if call else F.cross_entropy(model(data[0].clone()), data[1])
            loss.backward()
            optimizer.step()
    return Trace.open(folder)


@pytest.mark.parametrize("kind", [SortedByNumpy, SortedByLists, SortedUnseen, ClampedOutliers])
def test_a_step_whose_shares_are_mixed_up_is_refused_before_it_is_taken(tmp_path, kind):
    torch.manual_seed(0)
    model = kind()
    before = {name: each.clone() for name, each in model.state_dict().items()}

    with pytest.raises(TracingError, match=r"are not their own|has no rule"):
        traced(model, tmp_path)

    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_moves_in_train_mode_alone_are_said_not_to_be_audited(tmp_path):
    with pytest.warns(TracingWarning, match="could not be audited"):
        traced(SortedInTraining(), tmp_path)


def test_a_loss_within_the_model_is_audited_by_the_queries_loss(tmp_path):
    torch.manual_seed(0)
    model = LossWithin()

    with pytest.raises(TracingError, match="not their own"):
        traced(model, tmp_path, lambda model: model(X.clone(), Y))


class Coupled(Body):
    def forward(self, x):
        hidden = self.a(x)
        return self.b(hidden - hidden.mean(0) if self.training else hidden)


def test_examples_that_depend_on_each_other_in_training_are_said_not_to_be_audited(tmp_path):
    with pytest.warns(TracingWarning, match="in train mode its examples depend on each other"):
        trace = traced(Coupled(), tmp_path)
    assert len(trace.steps) == 4


PLAIN = {
    "batchnorm and dropout": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 3)
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)
    ),
    "double": lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double(),
    "as many features as examples": lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_sound_models_pass_and_are_left_as_they_were(tmp_path, name):
    def build():
        torch.manual_seed(1)
        model = PLAIN[name]()
        x = X.to(next(model.parameters()).dtype)
        return model, (x, Y)

    alone, (x, y) = build()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    torch.manual_seed(2)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(alone(x.clone()), y).backward()
        optimizer.step()
    expected = alone.state_dict(), torch.rand(1)

    model, data = build()
    torch.manual_seed(2)
    traced(model, tmp_path, data=data)

    assert torch.equal(torch.rand(1), expected[1])
    assert all(torch.equal(each, expected[0][n]) for n, each in model.state_dict().items())


def test_steps_1_2_4_and_8_are_audited(tmp_path, monkeypatch):
    from tracin.tracing import live_audit

    audited = []
    real = live_audit.gaps
    monkeypatch.setattr(
        live_audit, "gaps", lambda *args, **kw: audited.append(kw["seed"] + 1) or real(*args, **kw)
    )
    traced(Body(), tmp_path, steps=10)
    assert audited == [1, 2, 4, 8]


def test_a_model_that_cannot_be_run_again_is_said_not_to_be_audited(tmp_path):
    class Once(Body):
        runs = 0

        def forward(self, x):
            self.runs += len(x) == 6 and self.training
            if self.training and self.runs > 1:
                raise ValueError("only once a step")
            return super().forward(x)

    model = Once()
    with pytest.warns(TracingWarning, match=r"could not be audited \(ValueError: only once"):
        traced(model, tmp_path, steps=1)


def test_accumulated_micro_batches_are_all_audited(tmp_path):
    torch.manual_seed(0)
    model = SortedUnseen()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ascending = X[X[:, 0].argsort(descending=True)]  # in the model's order: nothing is moved
    data = torch.cat([ascending, X]), torch.cat([Y, Y])
    tracer = Tracer(model, optimizer, "cross_entropy", data, data, tmp_path)
    for rows in (torch.arange(6), torch.arange(6, 12)):
        with tracer.batch(rows):
            loss = F.cross_entropy(model(data[0][rows]), data[1][rows])
        loss.backward()
    with pytest.raises(TracingError, match="not their own"):
        optimizer.step()
    tracer._stop(is_broken=True)


def test_python_and_numpy_draw_as_they_would(tmp_path):
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)

    traced(Body(), tmp_path)

    assert (random.random(), np.random.rand()) == expected
    assert tracin.tracing.Trace.open(tmp_path).save.step == 4
