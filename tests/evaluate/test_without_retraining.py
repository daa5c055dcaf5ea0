"""Sources, copies and classes at the top of a list, against counting by hand."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import tracin
from tracin.errors import DataError, NonFiniteError, QueryError
from tracin.evaluate import duplicates, identical_class, randomised, randomised_run, retrieval
from tracin.evaluate.duplicates import with_copies
from tracin.evaluate.query_mean import query_mean


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run_of(model, loss="cross_entropy", checkpoints=None, **more):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    given = [state] if checkpoints is None else checkpoints
    return tracin.TracIn(model, loss, given, **{"learning_rates": [0.1] * len(given), **more})


def test_ranks_and_recall_are_those_of_sorting():
    scores = normal(20, 8)
    sources = [[at, at + 5] for at in range(8)]

    found = retrieval(scores, sources, at=(1, 5, 20))

    order = scores.argsort(0, descending=True)
    places = [[(order[:, q] == each).nonzero().item() + 1 for each in sources[q]] for q in range(8)]
    assert found.ranks.tolist() == [min(each) for each in places]
    assert found.mrr.value == pytest.approx(np.mean([1 / min(each) for each in places]))
    for k in (1, 5, 20):
        wanted = [sum(place <= k for place in each) / 2 for each in places]
        assert found.recall[k].by_query.tolist() == pytest.approx(wanted)


def test_sources_come_as_positions_lists_or_a_mask():
    scores = normal(6, 3)
    mask = torch.zeros(6, 3, dtype=torch.bool)
    mask[[4, 0, 2], [0, 1, 2]] = True

    forms = ([4, 0, 2], torch.tensor([4, 0, 2]), np.array([4, 0, 2]), [[4], [0], [2]], mask)

    found = [retrieval(scores, each, at=[2]).ranks.tolist() for each in forms]
    assert all(each == found[0] for each in found)


def test_equal_scores_share_their_places():
    found = retrieval(torch.ones(9, 2), [3, 8], at=[3])

    assert found.ranks.tolist() == [5, 5]
    assert found.recall[3].value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([0], "one entry per query, 3; 1 came"),
        ([0, 1, 6], r"sources of query 2 are positions in train, from 0 to 5; \[6\] came"),
        ([0, 1, [0.5]], r"sources of query 2 are positions .* \[0.5\] came"),
        (torch.ones(6, 3), r"bool \[train, queries\], here \[6, 3\]; \[6, 3\] of torch.float32"),
        (torch.zeros(6, 3, dtype=torch.bool), r"Query 0 has no source \(3 in all\)"),
        ([[0], [], [1]], r"Query 1 has no source \(1 in all\)"),
    ],
)
def test_sources_that_do_not_fit_are_refused(sources, words):
    with pytest.raises(DataError, match=words):
        retrieval(normal(6, 3), sources, at=[1])


def test_other_arguments_of_retrieval_are_checked():
    with pytest.raises(QueryError, match="k=7 examples were asked for, but train holds 6 examples"):
        retrieval(normal(6, 3), [0, 1, 2], at=[7])
    with pytest.raises(DataError, match=r"scores are \[train, queries\]; \[6\] came"):
        retrieval(normal(6), [0], at=[1])
    with pytest.raises(NonFiniteError, match="NaN"):
        retrieval(normal(6, 3) * torch.nan, [0, 1, 2], at=[1])


def test_the_interval_of_a_mean_is_near_that_of_the_normal():
    values = normal(400) + 3

    found = query_mean(values)

    half = 1.96 * float(values.std()) / 20
    assert found.value == pytest.approx(float(values.mean()))
    assert (found.low, found.high) == pytest.approx(
        (found.value - half, found.value + half), abs=0.02
    )
    assert query_mean(torch.tensor([1.0, torch.nan, 3.0])).value == 2
    assert math.isnan(query_mean(torch.full((3,), torch.nan)).low)


def test_a_copy_has_the_rank_of_its_score():
    torch.manual_seed(0)
    run = run_of(torch.nn.Linear(3, 2).double())
    train = normal(12, 3), torch.arange(12) % 2
    queries = normal(4, 3, seed=1), torch.tensor([0, 1, 0, 1])

    found = duplicates(run, train, queries)

    theirs, own = run.influence(train, queries), run.influence(queries, queries)
    every = torch.cat([theirs, own])
    wanted = 1 + (every > own.diagonal()).sum(0)
    assert found.ranks.tolist() == wanted.tolist()
    assert found.examples == 16


def test_cosines_always_find_a_copy():
    from tracin.evaluate.methods import CosineScores

    torch.manual_seed(0)
    run = run_of(torch.nn.Linear(3, 3).double())
    train = normal(12, 3), torch.arange(12) % 3

    found = duplicates(CosineScores(run), train, (normal(4, 3, seed=1), torch.arange(4) % 3))

    assert found.mrr.value == 1


def test_copies_join_data_of_any_kind():
    inputs, labels = normal(4, 2), torch.arange(4)
    more = normal(2, 2, seed=1), torch.arange(2)
    wanted = torch.cat([inputs, more[0]])

    for train, queries in [
        ((inputs, labels), more),
        (TensorDataset(inputs, labels), TensorDataset(*more)),
        (TensorDataset(inputs, labels), more),
        (tracin.WithIds((inputs, labels), list("abcd")), more),
        (list(zip(inputs, labels, strict=True)), list(zip(*more, strict=True))),
    ]:
        joined = with_copies(train, queries)
        opened = tracin.data.open_examples(joined)
        assert len(opened) == 6
        assert torch.equal(opened.take(range(6))[0], wanted)
    by_name = with_copies({"x": inputs, "y": labels}, {"x": more[0], "y": more[1]})
    assert torch.equal(by_name["x"], wanted)
    with pytest.raises(DataError, match=r"train has \[4, 2\] where queries have \[2, 3\]"):
        with_copies((inputs, labels), (normal(2, 3), torch.arange(2)))


def test_classes_are_counted():
    scores = normal(30, 5)
    ours, theirs = torch.arange(30) % 3, torch.tensor([0, 1, 2, 0, 1])

    found = identical_class(scores, ours, theirs, k=4)

    top = scores.topk(4, dim=0).indices
    wanted = (ours[top] == theirs).double()
    assert found.top.by_query.tolist() == wanted.mean(0).tolist()
    assert found.first.by_query.tolist() == wanted[0].tolist()
    assert found.chance == pytest.approx(1 / 3)
    assert "by chance 0.333" in str(found)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"came 29 and 5 for scores \[30, 5\]"):
        identical_class(normal(30, 5), torch.zeros(29).long(), torch.zeros(5).long())
    with pytest.raises(QueryError, match="k=31 proponents"):
        identical_class(normal(30, 5), torch.zeros(30).long(), torch.zeros(5).long(), k=31)


def test_shuffled_weights_keep_their_numbers_and_lose_their_places():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.BatchNorm1d(9))
    run = run_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    one, again, other = (randomised_run(run, seed).checkpoints[0].source for seed in (0, 0, 1))

    for name, value in before.items():
        assert torch.equal(one[name].flatten().sort().values, value.flatten().sort().values)
        assert torch.equal(one[name], again[name])
        assert torch.equal(model.state_dict()[name], value)
    assert not torch.equal(one["0.weight"], before["0.weight"])
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_all_checkpoints_are_shuffled_alike():
    model = torch.nn.Linear(3, 4, bias=False)
    states = [{"weight": torch.arange(12.0).reshape(4, 3) + at} for at in (0, 100)]

    run = randomised_run(run_of(model, "mse", states))

    first, second = (each.source["weight"] for each in run.checkpoints)
    assert torch.equal(first + 100, second)
    assert run.weights == [0.1, 0.1]


def test_the_correlation_with_other_scores_is_spearmans():
    stats = pytest.importorskip("scipy.stats")
    ours, theirs = normal(30, 4), normal(30, 4, seed=1) + normal(30, 4)

    found = randomised(ours, theirs)

    wanted = [stats.spearmanr(ours[:, q], theirs[:, q]).statistic for q in range(4)]
    assert found.by_query.tolist() == pytest.approx(wanted)
    with pytest.raises(QueryError, match=r"came \[30, 4\] and \[29, 4\]"):
        randomised(ours, theirs[1:])


def test_results_print_and_become_columns(tmp_path):
    pytest.importorskip("pyarrow")
    found = [
        retrieval(normal(20, 3), [0, 1, 2]),
        identical_class(normal(20, 3), torch.arange(20) % 2, torch.tensor([0, 1, 0])),
    ]

    for each in found:
        each.save(tmp_path / "table.parquet")
        assert len(each.columns()["query"]) == 3
    assert "recall@10" in str(found[0])
