"""An index's plan comes from a few examples, one parameter's gradients at a time."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from tracin.gradients import Covered, GradientMethod, slow_methods
from tracin.index import rows
from tracin.run import open_data, rows_pass
from tracin.sketches import Dot, Plan, Projection


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.head = nn.Embedding(30, 8), nn.Linear(8, 20), nn.Linear(20, 30)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.words(words)))).mT


def losses(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch), batch.roll(1, 1), reduction="none").mean(1)


def opened() -> tuple[tracin.TracIn, Tensor]:
    torch.manual_seed(0)
    model, words = Words(), torch.randint(30, (16, 5))
    return tracin.TracIn(model, losses, [model.state_dict()], learning_rates=[1.0]), words


def planned(run: tracin.TracIn, words: Tensor) -> Plan:
    groups = rows.groups_of(run.weights, run.parameters)
    return rows.plan_of(rows_pass(run), open_data(run, words, "train"), Projection(64), groups)


def spreads(plan: Plan) -> list[float]:
    return [block.spread for block in plan.columns.blocks if isinstance(block, Dot)]


def test_large_activations_are_taken_in_batches_and_give_much_the_same_plan(
    monkeypatch: pytest.MonkeyPatch,
):
    whole = planned(*opened())
    monkeypatch.setattr(rows, "PILOT_BYTES", 1)
    sizes = []
    again = rows.Gradients.again
    monkeypatch.setattr(
        rows.Gradients, "again", lambda self, b, v: (sizes.append(len(b)), again(self, b, v))[1]
    )

    parts = planned(*opened())

    assert sizes == [2] * 8
    assert parts.kinds == whole.kinds
    assert spreads(parts) == pytest.approx(spreads(whole), rel=0.5)


def test_gradients_that_come_in_blocks_are_taken_whole(monkeypatch: pytest.MonkeyPatch):
    run, words = opened()
    run.methods["inner.weight"] = Covered(GradientMethod.LOOP, "to see its blocks")
    monkeypatch.setattr(slow_methods, "MAX_BLOCK_NUMEL", 3 * 160)

    found = planned(run, words)

    assert found.width == 64
    assert spreads(found) == pytest.approx(spreads(planned(*opened())), rel=0.5)
