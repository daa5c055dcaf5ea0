"""Activation checkpointing: scores are right, and coverage says what makes them slow."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import slow_twin
import tracin
from tracin import GradientMethod


class Checkpointed(nn.Module):
    def __init__(self, *, is_reentrant: bool) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 3)
        self.is_reentrant = is_reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.inner, self.first(x), use_reentrant=self.is_reentrant)
        return self.head(torch.tanh(hidden))


@pytest.mark.parametrize("is_reentrant", [False, True], ids=["saved again", "reentrant"])
def test_checkpointed_layers_are_right_and_coverage_says_why_they_are_slow(is_reentrant: bool):
    torch.manual_seed(0)
    model = Checkpointed(is_reentrant=is_reentrant).double()
    data = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])
    expected = slow_twin.self_influence(model, "cross_entropy", data)

    found = run.self_influence(data)

    assert torch.allclose(found, expected, rtol=1e-9)
    covered = run.coverage(data)
    assert covered.by(GradientMethod.FAST) == []
    assert "switch it off" in str(covered)
