"""What the report's tests share."""

import pytest
import torch

from reported_results import explanations_of, suspects_of
from tracin import Explanations, Suspects


@pytest.fixture
def explanations() -> Explanations:
    return explanations_of()


@pytest.fixture
def suspects() -> Suspects:
    return suspects_of([0, 1, 2] * 4, [1, 1, 2] * 4)


@pytest.fixture
def train() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(12, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
