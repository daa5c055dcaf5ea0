"""A batch that takes another way through the model than all before it is audited."""

import numpy as np
import pytest
import torch
from torch import nn

import tracin


class OutliersLast(nn.Module):
    """Moves rows, or adds some, in batches that hold an outlier."""

    def __init__(self, move):
        super().__init__()
        self.a, self.b, self.move = nn.Linear(4, 6), nn.Linear(6, 3), move

    def forward(self, x):
        hidden, is_out = self.a(x).tanh(), (x[:, 0] > 2).numpy()
        if not is_out.any():
            return self.b(hidden)
        order = np.argsort(is_out, kind="stable")
        return self.move(self.b, hidden, torch.from_numpy(order))


def by_vmap(layer, hidden, order):
    moved = torch.func.vmap(lambda at: hidden.index_select(0, at[None])[0])(order)
    return layer(moved)[order.argsort()]


def by_cat(layer, hidden, order):
    twice = layer(torch.cat([hidden, hidden * 0.5]))
    return twice[: len(hidden)] + twice[len(hidden) :] * 0


def by_numpy(layer, hidden, order):
    return layer(hidden[order.numpy()])[order.argsort().numpy()]


def by_writing(layer, hidden, order):
    moved = torch.zeros_like(hidden)
    moved[order.argsort()] = hidden
    return layer(moved)[order.argsort()]


@pytest.mark.parametrize("move", [by_vmap, by_cat, by_numpy, by_writing])
def test_rows_that_one_batch_moves_keep_their_own_scores(move):
    torch.manual_seed(0)
    x, y = torch.randn(80, 4).clamp(max=1.9), torch.arange(80) % 3
    x[34, 0] = 5.0  # in the third batch, which no schedule audits
    model = OutliersLast(move)
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])

    scores = run.self_influence((x, y), batch_size=16)

    alone = run.self_influence((x, y), batch_size=1)
    torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-7)
