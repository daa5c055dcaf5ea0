"""Losses that depend on which examples their batch has are refused; rounding is not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracin
from tracin.errors import CoupledExamplesError
from tracin.gradients import GradientMethod


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
