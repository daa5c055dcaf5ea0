"""The linear datamodelling score, against scipy, known truths and resamples sorted anew."""

import math

import numpy as np
import pytest
import torch

from tracin.analysis.correlations import ranks
from tracin.errors import NonFiniteError, QueryError
from tracin.evaluate import RetrainedLosses, compare_lds, half_subsets, lds
from tracin.evaluate.resampled_ranks import Resamples, Sorted
from tracin.statistics import pearson

TRAIN, QUERIES, SUBSETS = 40, 6, 30


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth_of(worth, seeds=1, noise=0.0, subsets=None):
    subsets = half_subsets(TRAIN, SUBSETS) if subsets is None else subsets
    losses = -torch.stack([worth[each].sum(0) for each in subsets])[:, None].repeat(1, seeds, 1)
    return RetrainedLosses(subsets, losses + noise * normal(*losses.shape, seed=9), len(worth))


def test_it_is_spearmans_mean_over_queries():
    stats = pytest.importorskip("scipy.stats")
    worth, scores = normal(TRAIN, QUERIES), normal(TRAIN, QUERIES, seed=1)
    truth = truth_of(worth, seeds=2, noise=3.0)

    found = lds(scores + worth, truth, resamples=10)

    sums = truth.is_in.double() @ (scores + worth)
    wanted = [stats.spearmanr(sums[:, q], -truth.mean[:, q]).statistic for q in range(QUERIES)]
    assert found.by_query.numpy() == pytest.approx(np.array(wanted))
    assert found.value == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize("is_tied", [False, True])
def test_ranks_of_a_resample_are_those_of_sorting_it(is_tied):
    values = normal(12, 5)
    values = values.round() if is_tied else values
    drawn = torch.tensor([3, 3, 3, 0, 1, 11, 11, 5, 6, 7, 7, 2])
    counts = torch.bincount(drawn, minlength=12).double()[None]

    found = Sorted.of(values).ranks(counts)[0]  # around half the number drawn

    wanted = ranks(values[drawn]) - 0.5
    assert torch.allclose(found[drawn] + 6, wanted - wanted.mean(0) + 6)


def test_correlations_of_resamples_are_those_of_computing_each():
    ours, theirs = normal(15, 4), normal(15, 4, seed=2)
    ours[:, 0] = 1.0  # predicts nothing
    draws = Resamples.of(15, 4, 20, seed=0)

    found = draws.mean_correlations(Sorted.of(ours), Sorted.of(theirs))

    for at in range(20):
        rows = torch.repeat_interleave(torch.arange(15), draws.subsets[at].long())
        each = pearson(ranks(ours[rows]), ranks(theirs[rows])).nan_to_num(0.0)
        weights = draws.queries[at]
        assert float(found[at]) == pytest.approx(float((each * weights).sum() / weights.sum()))


def test_subsets_of_several_sizes_and_orders_count_as_sets():
    worth = normal(TRAIN, QUERIES)
    subsets = half_subsets(TRAIN, SUBSETS)
    ragged = [each.flip(0)[: 10 + at % 3] for at, each in enumerate(subsets)]

    assert lds(worth, truth_of(worth, subsets=ragged), resamples=5).value == pytest.approx(1)


def test_the_interval_holds_the_value_over_other_subsets_and_queries():
    """Of 40 repetitions with other subsets, queries and noise, at least 34 intervals hold it."""
    held, values = [], []
    for at in range(40):
        worth = normal(TRAIN, 30, seed=100 + at)
        scores = worth + 1.5 * normal(TRAIN, 30, seed=200 + at)
        subsets = half_subsets(TRAIN, 60, seed=at)
        found = lds(scores, truth_of(worth, subsets=subsets), resamples=300)
        values.append(found.value)
        held.append((found.low, found.high))

    expected = float(np.mean(values))

    assert sum(low <= expected <= high for low, high in held) >= 34


def test_the_ceiling_is_what_the_truth_without_noise_reaches():
    worth = normal(TRAIN, 200)
    subsets = half_subsets(TRAIN, 200, seed=5)
    truth = truth_of(worth, seeds=4, noise=6.0, subsets=subsets)

    found = lds(worth, truth, resamples=2)

    assert 0.5 < found.ceiling < 0.9
    assert found.value == pytest.approx(found.ceiling, abs=0.02)
    assert found.of_ceiling == pytest.approx(1, abs=0.03)


def test_the_reliability_of_three_seeds_is_near_that_of_their_noise():
    worth = normal(TRAIN, 80)
    subsets = half_subsets(TRAIN, 200, seed=5)

    found = {
        seeds: lds(worth, truth_of(worth, seeds, 6.0, subsets), resamples=2).reliability
        for seeds in (1, 2, 3, 6, 12)
    }

    spread = float(truth_of(worth, subsets=subsets).mean.var(0).mean())
    for seeds in (2, 3, 6, 12):
        wanted = spread / (spread + 36 / seeds)
        assert found[seeds] == pytest.approx(wanted, abs=0.04)
    assert math.isnan(found[1])


def test_differences_are_paired():
    worth = normal(TRAIN, QUERIES)
    truth = truth_of(worth, seeds=2, noise=4.0)
    noisy = worth + 0.5 * normal(TRAIN, QUERIES, seed=3)
    same = noisy + 1e-12

    found = compare_lds({"a": noisy, "b": same, "c": -worth}, truth, resamples=200)

    assert found.difference("a", "b") == pytest.approx((0, 0, 0), abs=1e-9)
    value, low, high = found.difference("a", "c")
    assert low < value < high
    assert found.best in ("a", "b")
    assert found["a"].value == lds(noisy, truth, resamples=200).value
    with pytest.raises(QueryError, match="no method 'd'; there are 'a', 'b', 'c'"):
        found.difference("a", "d")


def test_scores_that_are_all_the_same_predict_nothing():
    assert lds(torch.ones(TRAIN, QUERIES), truth_of(normal(TRAIN, QUERIES))).value == 0


def test_results_print_and_become_columns(tmp_path):
    pytest.importorskip("pyarrow")
    worth = normal(TRAIN, QUERIES)
    truth = truth_of(worth, seeds=2, noise=1.0)

    found = compare_lds({"a": worth, "b": -worth}, truth, resamples=50)

    assert str(found).splitlines()[0].split() == ["method", "LDS", "from", "best"]
    assert "6 queries, 30 subsets x 2 seeds" in str(found["a"])
    assert "ceiling" in str(found["a"])
    assert list(found.columns()["method"]) == ["a", "b"]
    assert len(found["a"].columns()["lds"]) == QUERIES
    for each in (found, found["a"], truth):
        each.save(tmp_path / "table.parquet")
    assert "losses of 6 queries in models trained on 30 subsets of 40 examples" in str(truth)


def test_results_draw_themselves():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    worth = normal(TRAIN, QUERIES)
    found = compare_lds({"a": worth, "b": -worth}, truth_of(worth, 2, 1.0), resamples=20)

    assert found.plot().get_xlabel() == "linear datamodelling score"
    assert found["a"].plot().get_ylabel() == "queries"
    pyplot.close("all")


def test_what_does_not_fit_is_refused():
    worth = normal(TRAIN, QUERIES)
    truth = truth_of(worth)

    with pytest.raises(QueryError, match=r"here \[40, 6\]; those of 'scores' are \[6, 40\]"):
        lds(worth.T, truth)
    with pytest.raises(NonFiniteError, match="The scores of 'a' of example 0 is NaN"):
        compare_lds({"a": worth * torch.nan}, truth)
    with pytest.raises(QueryError, match="At least one method's scores"):
        compare_lds({}, truth)
    with pytest.raises(QueryError, match="resamples is a whole number of at least 1"):
        lds(worth, truth, resamples=0)
    with pytest.raises(QueryError, match="over 4 subsets says nothing: at least 5"):
        lds(worth, truth_of(worth, subsets=half_subsets(TRAIN, 4)))


def test_losses_that_do_not_fit_are_refused():
    subsets = half_subsets(TRAIN, 5)

    with pytest.raises(QueryError, match=r"one row per subset; came \[5, 3\] for 5 subsets"):
        RetrainedLosses(subsets, torch.zeros(5, 3), TRAIN)
    with pytest.raises(NonFiniteError, match="that training diverged"):
        RetrainedLosses(subsets, torch.full((5, 1, 2), torch.inf), TRAIN)
    with pytest.raises(QueryError, match="positions in train, from 0 to 19"):
        RetrainedLosses(subsets, torch.zeros(5, 1, 2), 20)


def test_halves_are_drawn_by_their_seed():
    assert half_subsets(9, 3).shape == (3, 4)
    assert half_subsets(9, 3).equal(half_subsets(9, 5)[:3])
    assert not half_subsets(9, 3).equal(half_subsets(9, 3, seed=1))
    assert all(len(each.unique()) == 4 for each in half_subsets(9, 3))
    with pytest.raises(QueryError, match="at least 2; 1 was given"):
        half_subsets(1, 3)
    with pytest.raises(QueryError, match="count is a whole number of at least 1"):
        half_subsets(9, 0)
