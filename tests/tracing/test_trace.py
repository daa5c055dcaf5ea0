"""What is read back from a trace: ideal scores, explanations, and refusals."""

from functools import partial
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
    fit,
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


TARGETS = {
    "logit": (tracin.Logit(2), lambda model, batch: model(batch[0])[:, 2]),
    "function": (
        lambda model, batch: model(batch[0]).square().sum(1),
        lambda model, batch: model(batch[0]).square().sum(1),
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_raised_by_its_proponents(name, tmp_path, train, queries):
    target, value = TARGETS[name]
    paths = [Quadrature.FIRST_ORDER, Quadrature.TRAPEZOID]
    model = seeded(mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Tracer(
        model,
        optimizer,
        "cross_entropy",
        queries,
        train,
        tmp_path / "a",
        paths=paths,
        target=target,
    ) as tracer:
        row = torch.tensor([3])
        begin = value(model, queries).detach()
        slopes = torch.func.jacrev(
            lambda weights: value(partial(torch.func.functional_call, model, weights), queries)
        )({name: each.detach() for name, each in model.named_parameters()})
        with tracer.batch(row):
            loss = F.cross_entropy(model(train[0][row]), train[1][row])
        loss.backward()
        optimizer.step()
    trace = tracer.trace()

    found = trace.influence(Quadrature.FIRST_ORDER)[3].double()
    expected = -0.1 * sum(
        (slopes[name] * each.grad).flatten(1).sum(1) for name, each in model.named_parameters()
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    raised = value(model, queries).detach() - begin
    torch.testing.assert_close(trace.ideal()[3].double(), raised, rtol=1e-6, atol=1e-9)
    assert trace.explain(1).target is not None
    with pytest.raises(TracingError, match=r"target changed \(was '.*', now ''\)"):
        Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a", paths=paths)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (tracin.Predicted(), r"the last checkpoint predicts.* Name the class"),
        (tracin.LogitMargin(), r"the last checkpoint predicts.* Name the class"),
        ("predicted", r"target is None for the queries' loss"),
    ],
    ids=["predicted", "margin of what is predicted", "no target"],
)
def test_a_target_that_training_cannot_know_is_refused(target, words, tmp_path, train, queries):
    model = seeded(mlp)
    with pytest.raises(tracin.QueryError, match=words):
        Tracer(
            model, sgd(model.parameters()), "cross_entropy", queries, train, tmp_path, target=target
        )


def test_a_target_of_a_class_that_the_model_lacks_is_refused(tmp_path, train, queries):
    model = seeded(mlp)
    optimizer, folder = sgd(model.parameters()), tmp_path / "a"
    tracer = Tracer(
        model, optimizer, "cross_entropy", queries, train, folder, target=tracin.Logit(CLASSES)
    )
    with pytest.raises(tracin.QueryError, match=rf"the model scores {CLASSES} classes"):
        fit(tracer, model, optimizer, train, batches(1))


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
