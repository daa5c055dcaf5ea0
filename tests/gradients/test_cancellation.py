"""Lengths whose terms cancel are computed from gradients that are written out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracin
from tracin.gradients.forms import OuterProduct, SparseRows, cancelled, checked_squared_norm


def chosen_against_rejected(model, batch):
    scores = model(batch)[..., 0]
    return -F.logsigmoid(scores[:, 0] - scores[:, 1])


def nearly_equal_pairs():
    torch.manual_seed(0)
    good = torch.randn(24, 64)
    return torch.stack([good, good + 1e-3 * torch.randn(24, 64)], 1)


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))


def in_double(model, pairs):
    model, pairs = copy.deepcopy(model).double(), pairs.double()
    rows = []
    for each in pairs:
        loss = chosen_against_rejected(model, each[None]).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())]))
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [5, "auto"])
def test_pairs_of_nearly_equal_inputs_have_the_lengths_of_autograd(batch_size):
    pairs, net = nearly_equal_pairs(), model()
    run = tracin.TracIn(net, chosen_against_rejected, [net.state_dict()], learning_rates=[1.0])

    scores = run.self_influence(pairs, batch_size=batch_size)

    expected = in_double(net, pairs).square().sum(1)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-3, atol=0)
    assert run.verify(pairs).worst < 1e-3  # float32 itself loses as much, by autograd too


def test_queries_and_their_lengths_hold_as_well():
    pairs, net = nearly_equal_pairs(), model()
    run = tracin.TracIn(net, chosen_against_rejected, [net.state_dict()], learning_rates=[1.0])

    scores = run.influence(pairs, pairs[:3]).double()

    rows = in_double(net, pairs)
    lengths = rows.norm(dim=1)
    gaps = (scores - rows @ rows[:3].T).abs() / (lengths[:, None] * lengths[:3])
    assert gaps.max() < 1e-3


def test_rows_of_a_table_that_cancel_are_added_up_first():
    torch.manual_seed(0)
    values = torch.randn(3, 1, 8)
    form = SparseRows(torch.tensor([[4, 4]] * 3), torch.cat([values, -values * 0.9999], 1), 10)

    assert bool(cancelled(form.squared_norm(), form.terms()).all())
    expected = form.dense().double().square().sum(1)
    torch.testing.assert_close(checked_squared_norm(form).double(), expected, rtol=1e-4, atol=0)


def test_ordinary_positions_do_not_count_as_cancelled():
    torch.manual_seed(0)
    form = OuterProduct(torch.randn(4, 64, 320), torch.randn(4, 64, 480))

    assert not bool(cancelled(form.squared_norm(), form.terms()).any())
