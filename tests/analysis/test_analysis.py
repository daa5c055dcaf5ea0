"""Known answers, worked out by hand, for found curves."""

from itertools import permutations
from statistics import mean

import pytest
import torch

from tracin.analysis import found_curve
from tracin.errors import DataError, NonFiniteError, QueryError


def test_a_ranking_done_by_hand_gives_the_figures_done_by_hand():
    # From the top: wrong, right, wrong, right, right.
    scores = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2])
    is_wrong = torch.tensor([False, True, True, False, False])

    curve = found_curve(scores, is_wrong, at=[0.2, 0.4, 0.5, 1.0])

    assert curve.curve.tolist() == [0, 0.5, 0.5, 1, 1, 1]
    assert curve.found == {0.2: 0.5, 0.4: 0.5, 0.5: 0.75, 1.0: 1.0}
    assert curve.area == pytest.approx((0.25 + 0.5 + 0.75 + 1 + 1) / 5)
    assert curve.auroc == pytest.approx(5 / 6)
    assert curve.average_precision == pytest.approx((1 + 2 / 3) / 2)


def test_a_perfect_ranking_finds_all_in_the_share_that_is_wrong():
    is_wrong = torch.arange(100) < 10

    curve = found_curve(-torch.arange(100.0), is_wrong, at=[0.05, 0.1, 0.3])

    assert curve.found == {0.05: pytest.approx(0.5), 0.1: 1.0, 0.3: 1.0}
    assert curve.area == pytest.approx(1 - 0.1 / 2)
    assert curve.auroc == 1
    assert curve.average_precision == pytest.approx(1)


def test_scores_that_are_all_the_same_find_what_chance_finds():
    is_wrong = torch.arange(50) < 5

    curve = found_curve(torch.ones(50), is_wrong, at=[0.1, 0.25])

    assert curve.found == {0.1: pytest.approx(0.1), 0.25: pytest.approx(0.25)}
    assert curve.area == pytest.approx(0.5)
    assert curve.auroc == pytest.approx(0.5)


def test_ties_count_as_the_mean_over_all_their_orders():
    scores = torch.tensor([3.0, 2.0, 2.0, 2.0, 2.0, 1.0])
    is_wrong = torch.tensor([False, True, False, True, False, True])
    orders = []
    for order in permutations(range(4)):
        parted = scores.clone()
        parted[1:5] += torch.tensor(order) / 10
        orders.append(found_curve(parted, is_wrong, at=[0.5]))

    tied = found_curve(scores, is_wrong, at=[0.5])

    assert tied.found[0.5] == pytest.approx(mean(each.found[0.5] for each in orders))
    assert tied.area == pytest.approx(mean(each.area for each in orders))
    assert tied.auroc == pytest.approx(mean(each.auroc for each in orders))
    assert tied.average_precision == pytest.approx(mean(each.average_precision for each in orders))


def test_area_and_auroc_tell_the_same_story():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 20, (200,), generator=generator).float()
    is_wrong = torch.rand(200, generator=generator) < 0.1
    rate = float(is_wrong.double().mean())

    curve = found_curve(scores, is_wrong)

    assert curve.area == pytest.approx(curve.auroc * (1 - rate) + rate / 2)


def test_the_figures_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(300, generator=generator)
    is_wrong = torch.rand(300, generator=generator) < 0.2

    curve = found_curve(scores, is_wrong)

    precision = metrics.average_precision_score(is_wrong.numpy(), scores.numpy())
    assert curve.auroc == pytest.approx(metrics.roc_auc_score(is_wrong.numpy(), scores.numpy()))
    assert curve.average_precision == pytest.approx(precision)


def test_the_order_of_the_examples_changes_nothing():
    scores = torch.tensor([1.0, 5.0, 5.0, 2.0, 0.0])
    is_wrong = torch.tensor([False, True, False, True, False])
    order = torch.tensor([4, 2, 0, 1, 3])

    curve = found_curve(scores, is_wrong)
    shuffled = found_curve(scores[order], is_wrong[order])

    assert curve.curve.equal(shuffled.curve)
    assert curve.average_precision == shuffled.average_precision


@pytest.mark.parametrize(
    ("scores", "is_wrong", "at", "error", "words"),
    [
        ([1.0, 2.0], [True], [0.1], DataError, r"scores \[2\] and is_wrong \[1\]"),
        ([1.0, 2.0], [1, 0], [0.1], DataError, "of torch.int64"),
        ([1.0, 2.0], [False, False], [0.1], DataError, "is_wrong marks 0 of 2"),
        ([1.0, 2.0], [True, True], [0.1], DataError, "is_wrong marks 2 of 2"),
        ([1.0, float("nan")], [True, False], [0.1], NonFiniteError, "example 1 is NaN"),
        ([1.0, 2.0], [True, False], [20], QueryError, "20 was given. Write 20 % as 0.2"),
    ],
)
def test_rankings_that_cannot_be_judged_are_refused(scores, is_wrong, at, error, words):
    with pytest.raises(error, match=words):
        found_curve(torch.tensor(scores), torch.tensor(is_wrong), at=at)
