"""Hits and queries carry their label, the predicted class and their loss at the last checkpoint."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tracin
import tracin.tracin
from tracin.report.saved import explanations_of
from tracin.scoring import query_pass


def net(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Linear(4, 3).double()


@pytest.fixture
def train() -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return torch.randn(30, 4).double(), torch.randint(3, (30,))


def run_of(loss: Any = "cross_entropy") -> tracin.TracIn:
    weights = [dict(net(seed).state_dict()) for seed in (1, 2)]
    return tracin.TracIn(net(0), loss, weights, learning_rates="equal")


def losses(model: torch.nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def assert_true(found: tracin.Explanations, train: Any, queries: Any) -> None:
    """What the last checkpoint says, computed plainly."""
    with torch.no_grad():
        for data, facts, at in (
            (train, found.proponents.facts, torch.tensor(found.proponents.positions.tolist())),
            (train, found.opponents.facts, torch.tensor(found.opponents.positions.tolist())),
            (queries, found.query_facts, torch.arange(len(queries[0]))),
        ):
            assert facts is not None
            own = losses(net(2), data)[at]
            torch.testing.assert_close(facts.losses.double(), own, rtol=1e-5, atol=1e-6)
            assert facts.labels is not None
            assert torch.equal(facts.labels, data[1][at])
            if facts.predicted is not None:
                assert torch.equal(facts.predicted, net(2)(data[0]).argmax(1)[at])


def test_they_are_those_of_the_last_checkpoint_whatever_the_blocks(train, monkeypatch):
    queries = train[0][:5] + 0.5, train[1][5:10]
    assert_true(run_of().explain(train, queries, k=3), train, queries)

    monkeypatch.setattr(tracin.tracin, "HELD", 60)  # blocks of a few examples
    monkeypatch.setattr(query_pass, "room", lambda _: 1)  # each query takes a pass of its own
    found = run_of().explain(train, queries, k=3, batch_size=4)

    assert_true(found, train, queries)
    assert_true(found[1:3], train, (queries[0][1:3], queries[1][1:3]))
    assert_true(found[::-1], train, (queries[0].flip(0), queries[1].flip(0)))
    hit, facts = found[4].opponents[2], found.opponents.facts
    assert facts is not None
    assert facts.predicted is not None
    assert (hit.label, hit.predicted) == (train[1][hit.position], facts.predicted[4, 2])


def test_an_index_knows_what_was_predicted_where_the_model_looks_again(train, tmp_path: Path):
    queries = train[0][:5] + 0.5, train[1][5:10]
    index = run_of().index(
        train, tmp_path, tracin.Projection(dim=16), shard_size=8, recall_queries=0
    )

    found = index.explain(queries, k=3)
    exact = index.explain(queries, k=3, exact=True)
    rows = index.explain_rows([4, 2], k=2)

    for each in (found, exact):
        assert_true(each, train, queries)
        assert each.query_facts is not None
        assert each.query_facts.predicted is not None
    assert "predicted" not in found.columns()
    assert "predicted" in exact.columns()
    assert rows is not None
    assert_true(rows, train, (train[0][[4, 2]], train[1][[4, 2]]))
    assert "predicted" not in rows.columns()


def test_a_target_leaves_the_loss_of_queries_what_it_is(train, tmp_path: Path):
    index = run_of().index(train, tmp_path, tracin.Projection(dim=16), recall_queries=0)

    for explain in (lambda *a, **b: run_of().explain(train, *a, **b), index.explain):
        assert_true(explain(train, 1, target=tracin.Logit(1)), train, train)
        own = explain(train, 1, target=lambda model, batch: model(batch[0])[:, 1])
        assert own.query_facts is None
        assert own.target == "<lambda>"


def test_losses_alone_give_losses_and_a_group_of_queries_has_no_facts(train):
    found = run_of(losses).explain(train, train, k=2)
    group = run_of().explain(train, train, k=2, group="sum")

    assert {"loss", "query loss"} <= set(found.columns())
    assert not {"label", "predicted", "query label"} & set(found.columns())
    assert (found[0].proponents[0].label, found[0].label) == (None, None)
    assert group.query_facts is None
    assert "predicted" in group.columns()


def test_a_regression_has_targets_and_predictions():
    model = torch.nn.Linear(1, 1, bias=False)
    run = tracin.TracIn(model, "mse", [{"weight": torch.ones(1, 1)}], learning_rates="equal")
    train = torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 2.5])

    hit = run.explain(train, train, k=1)[0].proponents[0]

    assert (hit.id, hit.label, hit.predicted, hit.loss) == (0, 3.0, 1.0, 4.0)


def test_a_table_keeps_them(train, tmp_path: Path):
    found = run_of().explain(train, train, k=2)
    found.save(tmp_path / "explain.parquet")

    table = pq.read_table(tmp_path / "explain.parquet")
    columns = {name: table[name].to_numpy() for name in table.column_names}

    assert table["label"].to_pylist() == train[1][columns["position"].tolist()].tolist()
    assert str(explanations_of(columns, {})) == str(found)


def test_classes_are_read_by_the_names_of_the_models_config(train):
    model = net(0)
    model.config = SimpleNamespace(id2label={0: "cat", 1: "dog", 2: "owl"})
    run = tracin.TracIn(model, "cross_entropy", [dict(net(2).state_dict())], learning_rates="equal")

    found = run.explain(train, train, k=1)

    assert found.class_names == ("cat", "dog", "owl")
    assert f"query 0, label {found.class_names[train[1][0]]}, predicted" in str(found[0])
    assert found.columns()["label"].dtype.kind == "i"
    assert f": [{found.class_names[train[1][0]]}] " in str(found.show(train, train)[0])
    shown = str(found.show(train, train, labels=["a", "b", "c"])[0])
    assert not any(name in shown for name in found.class_names)
    model.config = SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"})
    assert run.explain(train, train, k=1).class_names == ()
