"""How stable rankings are, and how much their tops account for, each against the plain way."""

import math
from itertools import combinations, permutations
from statistics import mean

import numpy as np
import pytest
import torch

import tracin
from tracin.analysis import (
    checkpoint_losses,
    compare_found,
    explained_share,
    found_curve,
    rank_stability,
)
from tracin.analysis.rank_stability import chance_in_top, jackknifed
from tracin.baselines import SuspectScores
from tracin.errors import DataError, NonFiniteError, QueryError


def randoms(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_pairs_are_scipys_rank_correlations():
    stats = pytest.importorskip("scipy.stats")
    runs = [randoms(40, seed=seed).round(decimals=1) for seed in range(3)]

    told = rank_stability(runs, k=5)

    for one, other in combinations(range(3), 2):
        expected = stats.spearmanr(runs[one], runs[other]).statistic
        assert float(told.spearman[one, other]) == pytest.approx(expected)
    assert told.spearman.diagonal().tolist() == pytest.approx([1, 1, 1])


def test_the_overlap_is_the_share_of_the_top_in_common():
    runs = [randoms(40, seed=seed) for seed in range(2)]

    told = rank_stability({"a": runs[0], "b": runs[1]}, k=12)

    tops = [set(each.argsort(descending=True)[:12].tolist()) for each in runs]
    assert float(told.overlap[0, 1]) == pytest.approx(len(tops[0] & tops[1]) / 12)
    assert float(told.overlap[0, 0]) == 1
    assert told.chance == pytest.approx(0.3)


def test_ties_at_the_edge_count_as_the_mean_over_their_orders():
    tied, other = torch.tensor([3.0, 2, 2, 2, 1]), torch.tensor([5.0, 4, 1, 2, 3])

    told = rank_stability([tied, other], k=2)

    overlaps = []
    for order in permutations(range(3)):
        parted = tied.clone()
        parted[1:4] += torch.tensor(order) / 10
        tops = [set(each.argsort(descending=True)[:2].tolist()) for each in (parted, other)]
        overlaps.append(len(tops[0] & tops[1]) / 2)
    assert float(told.overlap[0, 1]) == pytest.approx(mean(overlaps))
    assert chance_in_top(tied[:, None], 2).sum() == pytest.approx(2)


def test_matrices_are_compared_query_by_query():
    runs = [randoms(30, 4, seed=seed) for seed in range(2)]

    told = rank_stability(runs, k=7)

    each = [rank_stability([run[:, query] for run in runs], k=7) for query in range(4)]
    assert float(told.spearman[0, 1]) == pytest.approx(mean(float(e.spearman[0, 1]) for e in each))
    assert float(told.overlap[0, 1]) == pytest.approx(mean(float(e.overlap[0, 1]) for e in each))


def test_the_interval_holds_the_mean_of_many_runs():
    generator = torch.Generator().manual_seed(0)
    held = []
    for _ in range(400):
        # The product of two standard normals has mean 0.
        each = torch.randn(6, generator=generator) + 2
        centre, half = jackknifed(each[:, None] * each)
        held.append(abs(centre - 4) <= half)
    assert mean(held) == pytest.approx(0.95, abs=0.05)


def test_two_runs_have_no_interval():
    told = rank_stability([[1, 2, 3], [1, 3, 2]], k=1)

    assert math.isnan(told.mean_spearman[1])
    assert "+-" not in str(told)
    assert str(told).endswith("by chance 0.333")


@pytest.mark.parametrize(
    ("runs", "k", "error", "words"),
    [
        ([[1, 2]], 1, QueryError, "at least two are needed; 1 was given"),
        ([[1, 2], [1, 2, 3]], 1, DataError, r"came \[2\], \[3\]"),
        ([[1, 2], [2, 1]], 3, QueryError, "there are 2. Give a k from 1 to 2"),
        ([[1, 2], [2, math.nan]], 1, NonFiniteError, "'run 1' of example 1 is NaN"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs, k, error, words):
    with pytest.raises(error, match=words):
        rank_stability(runs, k)


# How much the first ones account for


def test_shares_are_those_of_plain_sums():
    influence = randoms(25, 3).double()

    told = explained_share(influence, drops=[1.0, 2.0, 4.0])

    for query in range(3):
        scores = influence[:, query].tolist()
        ups = sorted((each for each in scores if each > 0), reverse=True)
        downs = sorted(each for each in scores if each < 0)
        for k in (0, 1, 4, 25):
            up, down = sum(ups[:k]), sum(downs[:k])
            assert float(told.share_of_proponents(k)[query]) == pytest.approx(up / sum(ups))
            assert float(told.share_of_opponents(k)[query]) == pytest.approx(down / sum(downs))
            assert float(told.share_of_drop(k)[query]) == pytest.approx((up + down) / 2**query)
        needed = int(told.proponents_needed(0.7)[query])
        assert sum(ups[:needed]) >= 0.7 * sum(ups) > sum(ups[: needed - 1])
        needed = int(told.opponents_needed(0.7)[query])
        assert sum(downs[:needed]) <= 0.7 * sum(downs) < sum(downs[: needed - 1])
        assert told.conservation is not None
        assert float(told.conservation[query]) == pytest.approx(sum(scores) / 2**query)
    assert told.proponents_needed(1.0).tolist() == (influence > 0).sum(0).tolist()


def test_without_drops_the_prediction_stands_for_them():
    told = explained_share([2.0, 1.0, -1.0])

    assert told.conservation is None
    assert told.share_of_drop(3).tolist() == [1.0]
    assert told.share_of_drop(1).tolist() == [0.5]


def test_a_side_without_influence_has_no_share():
    told = explained_share(np.array([[2.0], [1.0]]))

    assert told.opponents_needed(0.5).tolist() == [0]
    assert math.isnan(told.share_of_opponents(1))


def test_small_steps_of_sgd_account_for_the_drop_of_the_loss():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1).double()
    train = torch.randn(10, 3).double(), torch.randn(10).double()
    query = train[0][:2] + 0.1, train[1][:2]
    states, rate = [], 1e-4
    for _ in range(50):
        states.append({name: each.clone() for name, each in model.state_dict().items()})
        loss = (model(train[0])[:, 0] - train[1]).square().sum()
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for each in model.parameters():
                each -= rate * each.grad
    run = tracin.TracIn(model, "mse", states, learning_rates=[rate] * 50)
    last = tracin.TracIn(model, "mse", [states[0], model.state_dict()], learning_rates="equal")

    losses = checkpoint_losses(last, query)
    told = explained_share(run.influence(train, query), losses[0] - losses[1])

    assert losses.shape == (2, 2)
    assert told.conservation is not None
    assert told.conservation.tolist() == pytest.approx([1, 1], abs=0.02)


def test_shares_print_and_draw():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    told = explained_share(randoms(25, 12), drops=torch.ones(12))

    assert str(told).splitlines()[1].startswith("query  predicted drop  measured drop")
    assert str(told).endswith("... 2 more queries")
    assert len(told.plot().get_lines()) == 2
    assert len(rank_stability([randoms(5), randoms(5)], k=2).plot().images) == 1
    pyplot.close("all")


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda: explained_share(torch.zeros(2, 2, 2)), DataError, r"\[2, 2, 2\] came"),
        (lambda: explained_share([1.0], [1.0, 2.0]), DataError, r"one number per query, 1; \[2\]"),
        (lambda: explained_share([1.0]).share_of_drop(2), QueryError, "from 0 to 1; 2 was given"),
        (lambda: explained_share([1.0]).proponents_needed(80), QueryError, "Write 80 % as 0.8"),
    ],
)
def test_shares_that_cannot_be_are_refused(ask, error, words):
    with pytest.raises(error, match=words):
        ask()


def test_a_sorted_ranking_counts_in_the_order_of_the_data():
    scores = SuspectScores("Loss", np.arange(6), np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.0]))
    is_wrong = torch.tensor([False, True, False, True, False, False])

    assert found_curve(scores.top(6), is_wrong).area == found_curve(scores, is_wrong).area
    assert scores.top(6).top(2).positions.tolist() == [1, 3]  # pyright: ignore[reportOptionalMemberAccess]


def test_a_part_of_a_ranking_is_refused():
    scores = SuspectScores("Loss", np.arange(6), np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.0]))

    with pytest.raises(DataError, match="2 examples of a ranking were given, such as its top"):
        rank_stability([scores.top(2), scores.top(2)], k=1)


def test_infinite_influence_has_no_shares():
    with pytest.raises(NonFiniteError, match="infinite numbers, of which no share"):
        explained_share(torch.tensor([[torch.inf], [1.0]]))


def test_one_share_needs_no_list():
    curve = found_curve(torch.arange(10.0), torch.arange(10) > 7, at=0.2)  # pyright: ignore[reportArgumentType]

    assert curve.found == {0.2: 1.0}


def test_what_is_no_curve_is_refused_by_name():
    scores = SuspectScores("Loss", np.arange(2), np.zeros(2))

    with pytest.raises(QueryError, match=r"curves\['loss'\] is a curve of found_curve.*SuspectS"):
        compare_found({"loss": scores})  # pyright: ignore[reportArgumentType]
