"""A few targets expanded from a pool, against the plain way: one gradient per example."""

import math

import pytest
import torch
from torch.nn import functional as F

import tracin
from tracin import select
from tracin.errors import DataError, QueryError


@pytest.fixture(scope="module")
def task():
    """A net at three checkpoints, a pool of 40 with four copies, and five targets."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    model = model.double()
    states = []
    for _ in range(3):
        for each in model.parameters():
            each.data += 0.3 * torch.randn_like(each)
        states.append({name: each.clone() for name, each in model.state_dict().items()})
    run = tracin.TracIn(model, "cross_entropy", states, learning_rates=[0.3, 0.2, 0.1])
    inputs, labels = torch.randn(40, 4).double(), torch.arange(40) % 3
    inputs[36:], labels[36:] = inputs[:4] + 1e-4, labels[:4]
    targets = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1])
    return run, (inputs, labels), targets


def gradients(run, data):
    """Each example's gradients at all checkpoints, times the roots of weights: [examples, all]."""
    found = []
    state = {name: each.clone() for name, each in run.model.state_dict().items()}
    for checkpoint, weight in zip(run.checkpoints, run.weights, strict=True):
        run.model.load_state_dict(checkpoint.weights())
        rows = []
        for at in range(len(data[1])):
            loss = F.cross_entropy(run.model(data[0][at : at + 1]), data[1][at : at + 1])
            each = torch.autograd.grad(loss, list(run.model.parameters()))
            rows.append(torch.cat([one.flatten() for one in each]) * weight**0.5)
        found.append(torch.stack(rows))
    run.model.load_state_dict(state)
    return torch.cat(found, 1)


def plainly(ours, theirs, groups, budget, cosine, limit):
    """The selected positions and scores, and how many were dropped, one candidate after another."""
    names = sorted(set(groups))
    means = [theirs[[at for at, g in enumerate(groups) if g == name]].mean(0) for name in names]
    scores = []
    for row in ours:
        lengths = [float(row.norm() * one.norm()) if cosine else 1 for one in means]
        scores.append(max(float(row @ one) / by for one, by in zip(means, lengths, strict=True)))
    picked, dropped = [], 0
    before = list(theirs)
    for at in sorted(range(len(ours)), key=lambda at: -scores[at]):
        if len(picked) == budget or scores[at] <= 0:
            break
        near = max(float(F.cosine_similarity(ours[at], one, dim=0)) for one in before)
        if limit is not None and near >= limit:
            dropped += 1
            continue
        picked.append(at)
        before.append(ours[at])
    return picked, [scores[at] for at in picked], dropped


GROUPS = [0, 1, 2, 0, 1]


# Duplicates are dropped alike whichever the scores are: each budget and limit meets both kinds of
# scores and of groups, and those that drop the most meet every pair of them.
@pytest.mark.parametrize(
    ("budget", "limit", "groups", "normalise"),
    [
        (3, None, None, None),
        (3, None, GROUPS, "cosine"),
        (3, 0.7, None, "cosine"),
        (3, 0.7, GROUPS, None),
        (15, 0.7, None, None),
        (15, 0.7, None, "cosine"),
        (15, 0.7, GROUPS, None),
        (15, 0.7, GROUPS, "cosine"),
        (15, 0.999, None, "cosine"),
        (15, 0.999, GROUPS, None),
    ],
)
def test_the_selected_are_those_of_the_plain_way(
    task, groups, normalise, limit, budget, monkeypatch
):
    run, pool, targets = task
    monkeypatch.setattr("tracin.analysis.selected_examples.BLOCK", 7)

    told = select(run, pool, targets, budget, groups=groups, normalise=normalise, duplicates=limit)

    picked, scores, dropped = plainly(
        gradients(run, pool), gradients(run, targets), groups or [0] * 5, budget,
        normalise == "cosine", limit,
    )  # fmt: skip
    assert told.positions.tolist() == picked
    assert told.scores.tolist() == pytest.approx(scores)
    assert len(told.dropped) == dropped


def test_copies_are_left_out_and_named(task):
    run, pool, targets = task

    every = select(run, pool, targets, 40, duplicates=None)
    told = select(run, pool, targets, 40)

    copies = {at for at in every.positions.tolist() if at < 4}
    assert copies
    for at in copies:
        assert (at in told.positions) != (at + 36 in told.positions)
    pairs = {(min(one, int(other)), max(one, int(other))) for one, other in told.dropped}
    assert {(at, at + 36) for at in copies} <= pairs
    assert all(math.isnan(each) for each in every.nearest.tolist())
    assert bool((told.nearest < 0.98).all())


def test_a_target_in_the_pool_is_no_discovery(task):
    run, pool, _ = task
    targets = pool[0][[7]], pool[1][[7]]

    told = select(run, pool, targets, 5)

    assert 7 not in told.positions
    assert (7, "target 0") in told.dropped
    assert 7 in select(run, pool, targets, 5, duplicates=None).positions


def test_each_example_counts_for_the_group_it_helps_most(task):
    run, pool, targets = task
    groups = ["a", "b", "c", "a", "b"]

    told = select(run, pool, targets, 10, groups=groups, duplicates=None)

    influence = run.influence(pool, targets)
    for at, name, score in zip(told.positions, told.groups, told.scores, strict=True):
        means = {
            each: float(influence[at, [i for i, g in enumerate(groups) if g == each]].mean())
            for each in "abc"
        }
        assert name == max(means, key=lambda each: means[each])
        assert float(score) == pytest.approx(means[name])


def test_queries_in_parts_and_ids_give_the_same(task, monkeypatch):
    run, pool, targets = task
    whole = select(run, pool, targets, 10, groups=[0, 1, 2, 0, 1])
    names = [f"text {at}" for at in range(40)]
    monkeypatch.setattr("tracin.run.HELD", 20)

    parts = select(run, tracin.WithIds(pool, names), targets, 10, groups=[0, 1, 2, 0, 1])

    assert parts.positions.tolist() == whole.positions.tolist()
    assert parts.ids.tolist() == [f"text {at}" for at in whole.positions]
    assert parts.scores.tolist() == pytest.approx(whole.scores.tolist())


def test_a_selection_prints_saves_and_draws(task, tmp_path):
    run, pool, targets = task
    told = select(run, pool, targets, 40, groups=[0, 1, 2, 0, 1])

    told.save(tmp_path / "told.parquet")

    lines = str(told).splitlines()
    assert "of 40 asked for: no other helps" in lines[0]
    assert "near-duplicates left out" in lines[0]
    assert lines[1].split() == ["rank", "id", "score", "group", "nearest"]
    assert (tmp_path / "told.parquet").is_file()
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    assert len(told.plot().get_lines()) == 1
    pyplot.close("all")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"budget": 0}, QueryError, "budget is a whole number of at least 1; 0 was given"),
        ({"duplicates": 98}, QueryError, "above 0 and up to 1; 98 was given"),
        ({"normalise": "query"}, QueryError, 'None or one of "cosine"'),
        ({"groups": [0, 1]}, DataError, r"each of the 5 targets; \[2\] was given"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(task, options, error, words):
    run, pool, targets = task

    with pytest.raises(error, match=words):
        select(run, pool, targets, **options)


def test_a_pool_that_does_not_help_is_said():
    model = torch.nn.Linear(1, 1, bias=False)
    run = tracin.TracIn(model, "mse", [{"weight": torch.zeros(1, 1)}], learning_rates="equal")
    target = torch.ones(1, 1), torch.tensor([1.0])

    with pytest.raises(QueryError, match="None of the 2 examples of the pool has a positive"):
        select(run, (torch.ones(2, 1), torch.tensor([-1.0, -2.0])), target)


def test_exact_copies_are_left_out_at_a_cosine_of_one():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    inputs, labels = torch.randn(60, 5), torch.arange(60) % 3
    pool = inputs.repeat(3, 1), labels.repeat(3)

    told = select(run, pool, (inputs[:3] + 0.5, labels[:3]), budget=180, duplicates=1.0)

    assert len(set((told.positions % 60).tolist())) == len(told)
    assert len(told.dropped) == 2 * len(told)


def test_lengths_are_measured_under_the_preconditioner_of_the_pool(task):
    run, pool, _ = task
    kfac = tracin.TracIn(
        run.model, "cross_entropy", run.checkpoints,
        learning_rates=[0.3, 0.2, 0.1], preconditioner=tracin.KFAC(),
    )  # fmt: skip
    targets, groups = (pool[0][:4], pool[1][:4]), ["a", "a", "b", "b"]

    told = select(
        kfac, pool, targets, 40, groups=groups, normalise="cosine", duplicates=None, batch_size=7
    )

    products = kfac.influence(pool, targets).double()
    lengths = kfac.self_influence(pool).double().sqrt()
    expected = []
    for members in ([0, 1], [2, 3]):
        size = products[members][:, members].mean().sqrt()
        expected.append(products[:, members].mean(1) / (lengths * size))
    best = torch.stack(expected).amax(0)
    assert torch.allclose(told.scores.double(), best[told.positions], rtol=1e-9)


def test_groups_are_named_alike(task):
    run, pool, targets = task

    with pytest.raises(DataError, match="groups holds names of one kind"):
        select(run, pool, targets, groups=["a", None, "b", "a", "b"])


def test_all_curvature_of_a_selection_is_that_of_the_pool(task, monkeypatch):
    run, pool, targets = task
    kfac = tracin.KFAC()
    under = tracin.TracIn(run.model, "cross_entropy", run.checkpoints, preconditioner=kfac)
    fitted = []
    metric = tracin.KFAC.metric
    monkeypatch.setattr(
        tracin.KFAC,
        "metric",
        lambda self, place: fitted.append(len(place.train)) or metric(self, place),
    )

    select(under, pool, targets, budget=6, normalise="cosine")

    assert set(fitted) == {40}


@pytest.mark.parametrize("normalise", [None, "cosine", "checkpoint_cosine"])
def test_what_is_selected_for_predictions_is_that_for_targets_labelled_so(
    task, normalise, tmp_path
):
    run, pool, targets = task
    run.model.load_state_dict(run.checkpoints[-1].weights())
    labelled = targets[0], run.model(targets[0]).argmax(1)
    assert (labelled[1] != targets[1]).any()
    options = {"budget": 8, "duplicates": 0.9, "normalise": normalise, "groups": [0, 1, 0, 1, 1]}
    index = run.index(
        pool, tmp_path, tracin.Projection(64, seed=0), number_format="float32", recall_queries=0
    )

    for source, candidates in ((run, pool), (index, None)):
        found = select(source, candidates, targets, target=tracin.Predicted(), **options)
        wanted = select(source, candidates, labelled, **options)

        assert found.ids.tolist() == wanted.ids.tolist()
        assert found.dropped == wanted.dropped
        torch.testing.assert_close(found.scores, wanted.scores)
        torch.testing.assert_close(found.nearest, wanted.nearest)


def test_lengths_of_a_target_under_fitted_curvature_are_refused(task):
    run, pool, targets = task
    states = [each.weights() for each in run.checkpoints]
    fitted = tracin.TracIn(
        run.model, "cross_entropy", states, learning_rates="equal", preconditioner=tracin.KFAC()
    )
    square = {"target": lambda model, batch: model(batch[0])[:, 0] ** 2, "duplicates": None}

    with pytest.raises(QueryError, match=r"normalise with target=<lambda> needs the lengths"):
        select(fitted, pool, targets, normalise="cosine", **square)
    assert len(select(fitted, pool, targets, 3, **square)) == 3
