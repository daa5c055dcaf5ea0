"""Known answers, worked out by hand, for found-fraction curves and for planted label noise."""

from itertools import permutations
from statistics import mean

import pytest
import torch

from tracin.analysis import flip_labels, found_fraction
from tracin.errors import DataError, LabelError, NonFiniteError, QueryError


def test_a_ranking_done_by_hand_gives_the_figures_done_by_hand():
    # From the top: wrong, right, wrong, right, right.
    scores = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2])
    is_wrong = torch.tensor([False, True, True, False, False])

    curve = found_fraction(scores, is_wrong, at=[0.2, 0.4, 0.5, 1.0])

    assert curve.curve.tolist() == [0, 0.5, 0.5, 1, 1, 1]
    assert curve.found == {0.2: 0.5, 0.4: 0.5, 0.5: 0.75, 1.0: 1.0}
    assert curve.area == pytest.approx((0.25 + 0.5 + 0.75 + 1 + 1) / 5)
    assert curve.auroc == pytest.approx(5 / 6)
    assert curve.average_precision == pytest.approx((1 + 2 / 3) / 2)


def test_a_perfect_ranking_finds_all_in_the_share_that_is_wrong():
    is_wrong = torch.arange(100) < 10

    curve = found_fraction(-torch.arange(100.0), is_wrong, at=[0.05, 0.1, 0.3])

    assert curve.found == {0.05: pytest.approx(0.5), 0.1: 1.0, 0.3: 1.0}
    assert curve.area == pytest.approx(1 - 0.1 / 2)
    assert curve.auroc == 1
    assert curve.average_precision == pytest.approx(1)


def test_scores_that_are_all_the_same_find_what_chance_finds():
    is_wrong = torch.arange(50) < 5

    curve = found_fraction(torch.ones(50), is_wrong, at=[0.1, 0.25])

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
        orders.append(found_fraction(parted, is_wrong, at=[0.5]))

    tied = found_fraction(scores, is_wrong, at=[0.5])

    assert tied.found[0.5] == pytest.approx(mean(each.found[0.5] for each in orders))
    assert tied.area == pytest.approx(mean(each.area for each in orders))
    assert tied.auroc == pytest.approx(mean(each.auroc for each in orders))
    assert tied.average_precision == pytest.approx(mean(each.average_precision for each in orders))


def test_area_and_auroc_tell_the_same_story():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 20, (200,), generator=generator).float()
    is_wrong = torch.rand(200, generator=generator) < 0.1
    rate = float(is_wrong.double().mean())

    curve = found_fraction(scores, is_wrong)

    assert curve.area == pytest.approx(curve.auroc * (1 - rate) + rate / 2)


def test_the_figures_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(300, generator=generator)
    is_wrong = torch.rand(300, generator=generator) < 0.2

    curve = found_fraction(scores, is_wrong)

    precision = metrics.average_precision_score(is_wrong.numpy(), scores.numpy())
    assert curve.auroc == pytest.approx(metrics.roc_auc_score(is_wrong.numpy(), scores.numpy()))
    assert curve.average_precision == pytest.approx(precision)


def test_the_order_of_the_examples_changes_nothing():
    scores = torch.tensor([1.0, 5.0, 5.0, 2.0, 0.0])
    is_wrong = torch.tensor([False, True, False, True, False])
    order = torch.tensor([4, 2, 0, 1, 3])

    curve = found_fraction(scores, is_wrong)
    shuffled = found_fraction(scores[order], is_wrong[order])

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
        found_fraction(torch.tensor(scores), torch.tensor(is_wrong), at=at)


def test_flipped_labels_are_the_highest_scoring_wrong_ones():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 1.0, 2.0], [9.0, -1.0, -5.0]])
    labels = torch.tensor([0, 1, 1, 0])

    noisy, is_flipped = flip_labels(logits, labels, fraction=1.0, seed=0)

    assert noisy.tolist() == [1, 0, 2, 1]
    assert is_flipped.all()
    assert labels.tolist() == [0, 1, 1, 0]


def test_the_mask_marks_the_changed_labels_and_no_others():
    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(1))

    noisy, is_flipped = flip_labels(logits, labels, fraction=0.1, seed=2)

    assert int(is_flipped.sum()) == 20
    assert (noisy != labels).equal(is_flipped)


def test_the_seed_decides_which_labels_flip():
    logits = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(100, dtype=torch.long)
    generator = torch.Generator().manual_seed(5)

    first, same, other = (flip_labels(logits, labels, 0.2, seed=seed)[1] for seed in (5, 5, 6))
    by_generator = flip_labels(logits, labels, 0.2, seed=generator)[1]

    assert first.equal(same)
    assert first.equal(by_generator)
    assert not first.equal(other)


@pytest.mark.parametrize(
    ("logits", "labels", "fraction", "error", "words"),
    [
        ([[1.0, 2.0]], [0, 1], 0.1, DataError, r"scores \[1, 2\] and labels \[2\]"),
        ([[1.0], [2.0]], [0, 0], 0.1, DataError, "at least two classes"),
        ([[1.0, 2.0]], [0.0], 0.1, LabelError, "torch.float32 came"),
        ([[1.0, 2.0], [1.0, 2.0]], [0, 2], 0.1, LabelError, "0 to 1, but example 1 has 2"),
        ([[1.0, float("inf")]], [0], 0.1, NonFiniteError, "scores of example 0"),
        ([[1.0, 2.0]], [0], 10, QueryError, "share from 0 to 1; 10 was given"),
    ],
)
def test_labels_that_cannot_be_flipped_are_refused(logits, labels, fraction, error, words):
    with pytest.raises(error, match=words):
        flip_labels(torch.tensor(logits), torch.tensor(labels), fraction, seed=0)
