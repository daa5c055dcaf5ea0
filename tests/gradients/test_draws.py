"""A loss that draws random numbers for some examples only is refused when it does."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracin
from tracin.errors import LossError


class CropsLongOnes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        if float(x.abs().max()) <= 3:
            return self.layer(x)
        return self.layer(x.roll(int(torch.randint(1, 5, ())), 1))


class DrawsInVain(nn.Module):
    """As layers do that are skipped at random in training alone."""

    def __init__(self):
        super().__init__()
        self.layer, self.passes = nn.Linear(8, 3), 0

    def forward(self, x):
        self.passes += 1
        chance = torch.rand(())
        return self.layer(x) if chance > 0.5 or not self.training else x[:, :3]


def opened(model):
    return tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_draws_for_a_few_examples_are_found(batch_size):
    torch.manual_seed(0)
    x, y = torch.randn(40, 8).clamp(-2.9, 2.9), torch.arange(40) % 3
    x[[10, 20, 36]] = 4.0
    x[:, 3] *= 1.5

    with pytest.raises(LossError, match="draws random numbers"):
        opened(CropsLongOnes()).self_influence((x, y), batch_size=batch_size)


def test_draws_that_change_nothing_cost_little():
    torch.manual_seed(0)
    model = DrawsInVain().eval()
    x, y = torch.randn(256, 8), torch.arange(256) % 3

    scores = opened(model).self_influence((x, y), batch_size=2)

    losses = F.cross_entropy(model.layer(x), y, reduction="none")
    assert scores.shape == losses.shape
    assert model.passes < 1.5 * 128
