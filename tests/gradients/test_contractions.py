"""Einsum, stacks of matrices, bilinear maps and weights made of others keep their factors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import slow_twin
import tracin
from tracin.gradients.rules import steps

Call = Callable[[Tensor, Tensor], Tensor]


class Weight(nn.Module):
    def __init__(self, call: Call, *shape: int) -> None:
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.randn(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(torch.tanh(x), self.weight).flatten(1)


def experts(x: Tensor, w: Tensor) -> Tensor:
    return torch.bmm(x.view(-1, 3, 4).transpose(0, 1), w).transpose(0, 1)


def in_channels(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 6)), layer, nn.Flatten())


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "bi,io->bo": lambda: Weight(lambda x, w: torch.einsum("bi,io->bo", x, w), 12, 5),
    "oi,bi->bo": lambda: Weight(lambda x, w: torch.einsum("oi,bi->bo", w, x), 5, 12),
    "bti,hdi->bthd": lambda: Weight(
        lambda x, w: torch.einsum("bti,hdi->bthd", x.view(-1, 3, 4), w), 2, 5, 4
    ),
    "bthd,hdi->bti": lambda: Weight(
        lambda x, w: torch.einsum("bthd,hdi->bti", x.view(-1, 3, 2, 2), w), 2, 2, 5
    ),
    "tbi,tio->tbo": lambda: Weight(
        lambda x, w: torch.einsum("tbi,tio->tbo", x.view(-1, 3, 4).transpose(0, 1), w).transpose(
            0, 1
        ),
        3, 4, 5,
    ),
    "mixed bti,ihd->bthd": lambda: Weight(
        lambda x, w: torch.einsum("bti,dih->bthd", x.view(-1, 3, 4), w), 2, 4, 5
    ),
    "bmm": lambda: Weight(experts, 3, 4, 5),
    "stacked matmul": lambda: Weight(lambda x, w: x.view(-1, 3, 2, 2) @ w, 3, 2, 5),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(12, 5), "weight", 0.4),
    "cast": lambda: Weight(lambda x, w: x @ w.float().double().T, 5, 12),
    "scaled": lambda: Weight(lambda x, w: x @ (w * torch.arange(1.0, 6)[:, None] / 3).T, 5, 12),
    "own norm": lambda: Weight(lambda x, w: x @ (w / w.norm(dim=1, keepdim=True)).T, 5, 12),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(12, 5)),
    "weight norm of columns": lambda: parametrizations.weight_norm(nn.Linear(12, 5), dim=1),
    "weight norm over all": lambda: nn.utils.weight_norm(nn.Linear(12, 5), dim=-1),
    "weight norm of places": lambda: in_channels(
        parametrizations.weight_norm(nn.Conv1d(2, 4, 3, groups=2), dim=2)
    ),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(12, 5)),
    "fake quantised": lambda: Weight(
        lambda x, w: x @ torch.fake_quantize_per_tensor_affine(w.float(), 0.1, 0, -9, 9).double(),
        12, 5,
    ),
    "product of two": lambda: Weight(lambda x, w: x @ (w[:3].T @ w[3:]), 6, 12),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_scores_equal_one_backward_pass_per_example(build: Callable[[], nn.Module]):
    torch.manual_seed(0)
    layer = build().double()
    data: Any = torch.randn(6, 12).double(), torch.arange(6) % 3
    width = layer(data[0]).shape[1]
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(width, 3).double()).eval()
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    own = slow_twin.self_influence(model, loss, data)
    scores = slow_twin.influence(model, loss, data, data)
    assert torch.allclose(run.self_influence(data, batch_size=4).double(), own, rtol=1e-6)
    assert torch.allclose(run.influence(data, data).double(), scores, rtol=1e-6, atol=1e-9)
    assert {str(each.method) for each in run.coverage(data).entries.values()} == {"fast"}


def test_weight_norms_too_large_to_write_out_are_changed_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(steps, "BLOCK", 1)
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Conv1d(2, 4, 3))
    model = nn.Sequential(in_channels(layer), nn.Tanh(), nn.Linear(16, 3)).double().eval()
    data = torch.randn(6, 12).double(), torch.arange(6) % 3
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])

    found = run.influence(data, data, batch_size=4).double()

    torch.testing.assert_close(found, slow_twin.influence(model, "cross_entropy", data, data))
