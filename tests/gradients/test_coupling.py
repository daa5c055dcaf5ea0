"""Losses that depend on which examples their batch has are refused; rounding is not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracin
from tracin.errors import CoupledExamplesError, LossError
from tracin.gradients import GradientMethod, schedule


def opened(model, loss, **options):
    return tracin.TracIn(model, loss, [model.state_dict()], learning_rates=[1.0], **options)


def by_class_size(model, batch):
    """Each class weighs the same in its batch, in whatever order: few examples are coupled."""
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none") / torch.bincount(y)[y]


@pytest.mark.parametrize("batch_size", [32, "auto"])
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_counts_its_batch_is_refused_in_whatever_order(seed, batch_size):
    torch.manual_seed(seed)
    data = torch.randn(200, 8), torch.randint(0, 200, (200,))

    with pytest.raises(CoupledExamplesError, match=r"in a smaller batch and .* with more"):
        opened(nn.Linear(8, 200), by_class_size).self_influence(data, batch_size=batch_size)


def test_one_pair_in_a_batch_is_found():
    torch.manual_seed(0)
    data = torch.randn(16, 8), torch.arange(16)
    data[1][11] = 7  # the only two of one class

    with pytest.raises(CoupledExamplesError):
        opened(nn.Linear(8, 200), by_class_size).self_influence(data, batch_size=16)


@pytest.mark.parametrize("batch_size", [7, "auto"])
def test_losses_that_are_rounding_alone_are_not_called_coupled(batch_size):
    torch.manual_seed(1)
    model, x = nn.Linear(6, 1), torch.randn(64, 6)
    fitted = (model(x)[:, 0] + 1e-6 * torch.randn(64)).detach()

    def square(model, batch):
        return (model(batch[0])[:, 0] - batch[1]).square()

    run = opened(model, square)

    scores = run.self_influence((x, fitted), batch_size=batch_size)

    assert scores.max() < 1e-9
    assert run.coverage((x, fitted)).by(GradientMethod.FAST) == ["weight", "bias"]


@pytest.mark.parametrize("parameters", [None, ["bias"]])
def test_a_gradient_that_is_zero_but_for_rounding_is_not_called_coupled(parameters):
    def rank(model, batch):  # a bias shifts all scores alike
        logits = model(batch[0])[..., 0].log_softmax(1)
        return -(batch[1].softmax(1) * logits).sum(1)

    torch.manual_seed(0)
    data = torch.randn(12, 5, 6), torch.randn(12, 5)
    run = opened(nn.Linear(6, 1), rank, parameters=parameters)

    scores = run.self_influence(data)

    assert scores.shape == (12,)
    assert "bias" in run.coverage(data).by(GradientMethod.FAST)


class _Shared(torch.autograd.Function):
    """Its loss is that of the example alone; its gradient depends on how many there are."""

    @staticmethod
    def forward(ctx, x):
        ctx.examples = len(x)
        return x.clone()

    @staticmethod
    def backward(ctx, *deltas):
        return deltas[0] / ctx.examples


def by_size_of_the_batch(model, batch):
    return F.cross_entropy(_Shared.apply(model(batch[0])), batch[1], reduction="none")


# A model of large activations has a short first batch, each of whose examples is audited alone.
@pytest.mark.parametrize("held", [0, 1 << 20])
@pytest.mark.parametrize("asked", ["self_influence", "influence", "of other queries"])
def test_gradients_that_depend_on_the_batch_are_refused_where_losses_do_not(
    monkeypatch, held, asked
):
    torch.manual_seed(0)
    monkeypatch.setattr(schedule, "BYTES", held)
    data = torch.randn(32, 8), torch.arange(32) % 3
    run = opened(nn.Linear(8, 3), by_size_of_the_batch)
    ask = {
        "self_influence": lambda: run.self_influence(data, batch_size=8),
        "influence": lambda: run.influence(data, data, batch_size=8),
        "of other queries": lambda: run.influence(data, (*data, torch.zeros(32)), batch_size=8),
    }[asked]

    with pytest.raises(CoupledExamplesError, match="alone and together, the gradients"):
        ask()


def test_state_that_a_later_checkpoint_changes_is_called_state():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            if self.layer.bias[0] > 5:
                self.seen += 1
            return self.layer(x) * (1 + 0.1 * self.seen)

    torch.manual_seed(0)
    model = Counts()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    later = {**first, "layer.bias": torch.full((3,), 6.0)}
    run = tracin.TracIn(model, "cross_entropy", [first, later], learning_rates="equal")

    with pytest.raises(LossError, match="the buffer 'seen' changes in each pass"):
        run.self_influence((torch.randn(32, 8), torch.arange(32) % 3))
