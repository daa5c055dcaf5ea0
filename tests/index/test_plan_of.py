"""An index's plan comes from a few examples, one parameter's gradients at a time."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from tracin.gradients import Covered, GradientMethod, pair_check, slow_methods
from tracin.index import rows
from tracin.index.build import begun
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


def visited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples each audited batch has."""
    found: list[int] = []
    visit = rows.Gradients.visit

    def noted(self: rows.Gradients, batch: Tensor, *given: Any, **named: Any) -> Any:
        found.append(len(batch))
        return visit(self, batch, *given, **named)

    monkeypatch.setattr(rows.Gradients, "visit", noted)
    return found


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

    assert sizes == [2] * (rows.MEASURED // 2)
    assert parts.kinds == whole.kinds
    assert spreads(parts) == pytest.approx(spreads(whole), rel=0.5)


def test_gradients_that_come_in_blocks_are_taken_whole(monkeypatch: pytest.MonkeyPatch):
    run, words = opened()
    run.methods["inner.weight"] = Covered(GradientMethod.LOOP, "to see its blocks")
    monkeypatch.setattr(slow_methods, "MAX_BLOCK_NUMEL", 3 * 160)

    found = planned(run, words)

    assert found.width == 64
    assert spreads(found) == pytest.approx(spreads(planned(*opened())), rel=0.5)


def test_columns_that_follow_from_shapes_are_those_that_all_examples_give(
    monkeypatch: pytest.MonkeyPatch,
):
    seen = visited(monkeypatch)

    few = planned(*opened())
    monkeypatch.setattr(rows, "follows_from_shapes", lambda pilot, groups: False)
    whole = planned(*opened())

    assert seen == [rows.SHAPES, rows.SHAPES, rows.PILOT]
    assert few.kinds == whole.kinds
    assert few.columns.sides == whole.columns.sides
    assert spreads(few) == pytest.approx(spreads(whole), rel=0.5)


@pytest.mark.parametrize("change", ["one position", "two groups", "unused"])
def test_columns_that_depend_on_gradients_are_planned_from_all_examples(
    monkeypatch: pytest.MonkeyPatch, change: str
):
    run, words = opened()
    if change == "one position":
        words = words[:, :1]
    groups = rows.groups_of(run.weights, run.parameters)
    if change == "two groups":
        groups["head.bias"] = 1
    walk = rows_pass(run)
    if change == "unused":
        groups["none"] = 0
        walk.gradients.parameters["none"] = nn.Parameter(torch.zeros(3))
    seen = visited(monkeypatch)

    rows.plan_of(walk, open_data(run, words, "train"), Projection(64), groups)

    assert seen == [rows.SHAPES, rows.PILOT]


def test_a_build_compares_examples_alone_once_and_other_processes_for_themselves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    run, words = opened()
    compared = []
    alone = pair_check.alone
    monkeypatch.setattr(pair_check, "alone", lambda *a: (compared.append(1), alone(*a))[1])

    job = begun(run, words, tmp_path / "index", Projection(64), "float16", 8, 4)
    with job.open() as build:
        for unit in job.manifest.units():
            build(unit)

    assert len(compared) == 1
    assert pickle.loads(pickle.dumps(job)).walk is None
