"""What is read back from a trace: ideal scores, explanations, and refusals."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import tracin
from traced_training import (
    CLASSES,
    QUERIES,
    TRAIN,
    batches,
    losses,
    mlp,
    seeded,
    sgd,
    traced,
)
from tracin import Tracer, TracingError
from tracin.tracing import Quadrature

pytestmark = pytest.mark.usefixtures("float64")


def test_ideal_is_exact_and_conserved(tmp_path, train, queries):
    rows = [ids[:1] for ids in batches(15)]
    trace, _ = traced(tmp_path, mlp, sgd, train, queries, rows)
    model = seeded(mlp)
    start = losses(model, queries)
    expected = torch.zeros(TRAIN, QUERIES)
    optimizer = sgd(model.parameters())
    for ids in rows:
        before = losses(model, queries).detach()
        optimizer.zero_grad()
        F.cross_entropy(model(train[0][ids]), train[1][ids]).backward()
        optimizer.step()
        expected[ids] += before - losses(model, queries).detach()
    ideal = trace.ideal()
    assert torch.allclose(ideal, expected, atol=1e-14)
    assert torch.allclose(ideal.sum(0), start - losses(model, queries), atol=1e-13)
    unseen = sorted(set(range(TRAIN)) - {int(ids) for ids in rows})
    assert unseen
    assert not ideal[unseen].any()
    assert not trace.influence()[unseen].any()


def test_ideal_of_larger_batches_is_not_split(tmp_path, train, queries):
    trace, _ = traced(tmp_path, mlp, sgd, train, queries, batches(3))
    with pytest.raises(tracin.QueryError, match="cannot be split among them"):
        trace.ideal()
    assert trace.goodness().lemma_gap < 1e-12


def test_explanations_are_the_top_and_bottom(tmp_path, train, queries):
    named = tracin.WithIds(train, [f"image {i}" for i in range(TRAIN)])
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    with Tracer(model, optimizer, "cross_entropy", queries, named, tmp_path / "a") as tracer:
        for ids in batches(6):
            optimizer.zero_grad()
            with tracer.batch([f"image {i}" for i in ids.tolist()]):
                loss = F.cross_entropy(model(train[0][ids]), train[1][ids])
            loss.backward()
            optimizer.step()
    trace = tracin.tracing.Trace.open(tmp_path / "a")
    scores = trace.influence()
    found = trace.explain(k=4)
    held = f"Trace({len(named)} examples, on {QUERIES} queries along "
    assert repr(trace).startswith(held)
    assert repr(trace).endswith(f"{trace.save.rows} steps traced, {tmp_path / 'a'})")
    assert torch.equal(found.top(4).scores, scores.topk(4, dim=0).values.T)
    assert torch.equal(found.bottom(4).scores, -(-scores).topk(4, dim=0).values.T)
    assert str(found.top(1).ids[0, 0]).startswith("image ")
    assert trace.query_ids.tolist() == list(range(QUERIES))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells memory there")
def test_scores_stay_on_the_disk(tmp_path, queries):
    """[train, queries] floats are never held: two paths of 40 MB here, and a save of both."""

    class Many(torch.utils.data.Dataset):
        def __len__(self):
            return 2_000_000

        def __getitem__(self, index):
            return torch.full((6,), index / len(self)), torch.tensor(index % CLASSES)

    def held():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    many = Many()
    with Tracer(model, optimizer, "cross_entropy", queries, many, tmp_path / "a") as tracer:
        before = held()
        for end in range(len(many), 0, -400_000):
            ids = torch.arange(end - 1000, end)
            optimizer.zero_grad()
            with tracer.batch(ids):
                batch = [many[i] for i in ids.tolist()]
                loss = F.cross_entropy(
                    model(torch.stack([x for x, _ in batch])), torch.stack([y for _, y in batch])
                )
            loss.backward()
            optimizer.step()
        tracer.save()
        assert held() - before < 30  # MB


def test_a_folder_without_a_trace(tmp_path):
    with pytest.raises(TracingError, match="holds no trace"):
        tracin.tracing.Trace.open(tmp_path)


def test_a_path_that_was_not_traced(tmp_path, train, queries):
    trace, _ = traced(
        tmp_path, mlp, sgd, train, queries, batches(1), paths=[Quadrature.FIRST_ORDER]
    )
    with pytest.raises(tracin.QueryError, match="holds FIRST_ORDER"):
        trace.influence(Quadrature.SIMPSON)
