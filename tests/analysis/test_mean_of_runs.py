import math

import numpy as np
import pytest
import torch
from torch import nn

import tracin
from tracin.baselines import InfluenceFunctions
from tracin.errors import QueryError


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def run_of(seed, **options):
    model = net(seed)
    return tracin.TracIn(
        model, "cross_entropy", [net(seed).state_dict(), net(seed + 50).state_dict()], **options
    )


def data(examples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(examples, 4, generator=generator).double(), torch.arange(examples) % 3


TRAIN, QUERIES = data(40), data(5, 1)


def runs(count=3):
    return [run_of(seed, learning_rates="equal") for seed in range(count)]


def test_influence_is_the_mean_of_the_runs():
    several = runs()

    found = tracin.mean(several).influence(TRAIN, QUERIES)

    want = torch.stack([run.influence(TRAIN, QUERIES).double() for run in several]).mean(0)
    torch.testing.assert_close(found, want)


def test_self_influence_is_the_mean_of_the_runs():
    several = runs()

    found = tracin.mean(several).self_influence(TRAIN)

    want = torch.stack([run.self_influence(TRAIN).double() for run in several]).mean(0)
    torch.testing.assert_close(found, want)


def test_explanations_have_the_strongest_of_the_mean_and_what_single_runs_say(monkeypatch):
    several = runs()
    scores = torch.stack([run.influence(TRAIN, QUERIES).double() for run in several])

    # One query at a time, too.
    for held in (1 << 26, 1):
        monkeypatch.setattr("tracin.analysis.mean_of_runs.HELD", held)
        found = tracin.mean(several).explain(TRAIN, QUERIES, k=7)

        for sign, side in ((1, found.proponents), (-1, found.opponents)):
            for query in range(5):
                order = (-sign * scores.mean(0)[:, query]).argsort()[:7]
                assert side.positions[query].tolist() == order.tolist()
                chosen = scores[:, order, query]
                torch.testing.assert_close(side.scores[query], chosen.mean(0))
                torch.testing.assert_close(side.errors[query], chosen.std(0) / math.sqrt(3))
                torch.testing.assert_close(side.by_checkpoint[query].sum(1), side.scores[query])
                better = (sign * scores[:, None, :, query] > sign * chosen[:, :, None]).sum(2) + 1
                assert side.places[query].tolist() == [
                    [int(each.min()), int(each.max())] for each in better.T
                ]
        assert found.checkpoints == ("run 0", "run 1", "run 2")


def test_one_explanation_shows_the_places_and_its_table_has_them():
    found = tracin.mean(runs()).explain(TRAIN, QUERIES, k=2)

    first = found[0].proponents[0]
    assert first.places is not None
    assert 1 <= first.places[0] <= first.places[1] <= 40
    assert "places in single runs" in str(found[0])
    assert f"{first.places[0]} to {first.places[1]}" in str(found)
    columns = found.columns()
    assert columns["best place"][0] == first.places[0]
    assert columns["worst place"][0] == first.places[1]
    assert found.top(1).places.shape == (5, 1, 2)
    assert len(columns["score at run 2"]) == len(columns["best place"]) == 20


def test_ids_are_the_users():
    ids = [f"row {at}" for at in range(40)]

    found = tracin.mean(runs(2)).explain(tracin.WithIds(TRAIN, ids), QUERIES, k=1)

    assert found.proponents.ids[0, 0] == ids[found.proponents.positions[0, 0]]


def test_runs_under_curvature_and_baselines_are_averaged_as_well():
    curved = [run_of(seed, preconditioner=tracin.KFAC()) for seed in range(2)]
    baselines = [InfluenceFunctions(run, damping=1.0) for run in runs(2)]

    for several in (curved, baselines):
        found = tracin.mean(several).influence(TRAIN, QUERIES)
        want = sum(each.influence(TRAIN, QUERIES).double() for each in several) / 2
        torch.testing.assert_close(found, want)


def test_a_single_run_has_no_mean():
    with pytest.raises(QueryError, match=r"over two runs or more.*1 came"):
        tracin.mean(runs(1))


def test_the_same_run_twice_is_refused():
    run = run_of(0, learning_rates="equal")

    with pytest.raises(QueryError, match=r"Run 1 is in the list twice"):
        tracin.mean([run, run])


@pytest.mark.parametrize("given", [3, None])
def test_no_list_of_runs_is_refused(given):
    with pytest.raises(QueryError, match=r"takes a list of runs"):
        tracin.mean(given)


def test_what_is_no_run_is_refused():
    with pytest.raises(QueryError, match=r"number 1 is an? Linear"):
        tracin.mean([run_of(0, learning_rates="equal"), nn.Linear(1, 1)])


def test_runs_with_other_preconditioners_are_refused():
    with pytest.raises(
        QueryError, match=r"no common unit.*TracIn, TracIn under KFAC\(damping=0\.3\)"
    ):
        tracin.mean([run_of(0, learning_rates="equal"), run_of(1, preconditioner=tracin.KFAC())])


def test_runs_with_other_dampings_are_refused():
    runs = [run_of(seed, preconditioner=tracin.KFAC(10.0**seed)) for seed in range(2)]

    with pytest.raises(QueryError, match=r"no common unit.*damping=1\), .*damping=10\)"):
        tracin.mean(runs)


def test_a_run_and_a_baseline_are_refused():
    run = run_of(0, learning_rates="equal")

    with pytest.raises(QueryError, match=r"no common unit.*NearestNeighbours, TracIn\."):
        tracin.mean([run, tracin.baselines.NearestNeighbours(run)])


def test_baselines_without_self_influence_say_so():
    baselines = [InfluenceFunctions(run, damping=1.0) for run in runs(2)]

    with pytest.raises(QueryError, match=r"run 0 is an? InfluenceFunctions"):
        tracin.mean(baselines).self_influence(TRAIN)


def test_k_is_within_the_data():
    with pytest.raises(QueryError, match=r"train holds 40 examples"):
        tracin.mean(runs(2)).explain(TRAIN, QUERIES, k=41)


def test_the_mean_prints_as_what_it_is():
    assert repr(tracin.mean(runs(2))) == "MeanOfRuns(2 runs)"
    assert isinstance(np.asarray(tracin.mean(runs(2)).influence(TRAIN, QUERIES)), np.ndarray)


def predicted_together(several):
    found = torch.zeros(5, 3).double()
    for run in several:
        run.model.load_state_dict(run.checkpoints[-1].weights())
        found += run.model(QUERIES[0]).softmax(1)
    return found.argmax(1)


def test_a_class_that_a_target_leaves_open_is_what_the_runs_predict_together():
    several = runs(4)
    together = predicted_together(several)
    each = torch.stack([predicted_together([run]) for run in several])
    assert (each != together).any(1).any()
    wanted = tracin.mean(several).influence(TRAIN, (QUERIES[0], together))

    found = tracin.mean(several).influence(TRAIN, QUERIES, target=tracin.Predicted())
    explained = tracin.mean(several).explain(TRAIN, QUERIES, 3, target=tracin.Predicted())

    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(explained.proponents.scores, wanted.T.topk(3).values)
    assert explained.target == "Predicted()"


@pytest.mark.parametrize(
    "target",
    [tracin.Logit(1), lambda model, batch: model(batch[0])[:, 0] ** 2],
    ids=["logit", "function"],
)
def test_a_target_is_that_of_each_run(target):
    several = runs(2)
    wanted = sum(run.influence(TRAIN, QUERIES, target=target).double() for run in several) / 2

    torch.testing.assert_close(
        tracin.mean(several).influence(TRAIN, QUERIES, target=target), wanted
    )


def test_baselines_know_no_targets():
    several = [InfluenceFunctions(run, damping=1.0) for run in runs(2)]

    with pytest.raises(QueryError, match=r"target= is for runs, .* run 0 is an InfluenceFunctions"):
        tracin.mean(several).explain(TRAIN, QUERIES, 1, target=tracin.Logit(0))
