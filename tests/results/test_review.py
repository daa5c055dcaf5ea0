"""A sample of the ranking says how many labels are wrong, without bias, and how sure that is."""

import re
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tracin import QueryError, Suspects
from tracin.results.review import allocation, estimated, strata_of


def ranking(total: int, texts: bool = False) -> Suspects:
    """The example at position p is in row total - 1 - p."""
    positions = np.arange(total)
    ids = np.array([f"n{each}" for each in positions], dtype=object) if texts else positions
    return Suspects(
        ids=ids,
        positions=positions,
        given_labels=np.zeros(total, dtype=np.int64),
        suggested_labels=np.ones(total, dtype=np.int64),
        scores={"loss": torch.arange(total).double()},
        ranked_by="loss",
    ).ranked("loss")


def wrong_rows(total: int, expected: float, power: float, seed: int = 0) -> np.ndarray:
    """Rows with a wrong label, the more often the higher they stand: [total], bool."""
    chance = (np.arange(total) + 10.0) ** -power
    chance = np.minimum(1, chance * expected / chance.sum())
    return np.random.default_rng(seed).random(total) < chance


def review(suspects: Suspects, is_wrong: np.ndarray, n: int, seed: int) -> dict[int, bool]:
    total = len(suspects)
    return {int(each): bool(is_wrong[total - 1 - each]) for each in suspects.sample(n, seed).ids}


def test_a_sample_holds_rows_of_all_strata_and_most_densely_the_first():
    sample = ranking(6400).sample(140, seed=3)
    rows = 6399 - sample.positions

    counts = np.histogram(rows, strata_of(6400))[0]

    assert len(set(sample.ids.tolist())) == len(sample) == 140
    assert counts.tolist() == [8, 8, 11, 16, 22, 31, 44]
    assert np.array_equal(counts, allocation(np.diff(strata_of(6400)), 140))
    assert sample.total == 6400
    assert rows.tolist() != sorted(rows.tolist())


def test_a_sample_is_the_same_for_the_same_seed():
    one, same, other = (ranking(500).sample(50, seed=seed).ids.tolist() for seed in (1, 1, 2))

    assert one == same != other


def test_each_row_of_a_stratum_is_drawn_as_often():
    counts = np.zeros(640)
    for seed in range(400):
        counts[639 - ranking(640).sample(64, seed).positions] += 1
    bounds = strata_of(640)
    for first, stop in pairwise(bounds):
        each = counts[first:stop]
        spread = np.sqrt(each.mean() * (1 - each.mean() / 400))
        assert abs(each - each.mean()).max() < 4.5 * spread


@pytest.mark.parametrize(("expected", "power"), [(30, 1.0), (200, 1.0), (200, 0.0), (600, 0.5)])
def test_the_estimate_has_no_bias_and_its_interval_covers_the_truth(expected: int, power: float):
    total, trials = 1000, 200
    suspects, is_wrong = ranking(total), wrong_rows(total, expected, power)
    truth = int(is_wrong.sum())

    found = [suspects.estimate(review(suspects, is_wrong, 140, seed)) for seed in range(trials)]

    estimates = np.array([each.wrong for each in found])
    error = estimates.std() / np.sqrt(trials)
    assert abs(estimates.mean() - truth) < 4 * error
    assert np.mean([each.low <= truth <= each.high for each in found]) > 0.9


def test_a_good_ranking_makes_a_narrow_interval():
    total = 2000
    suspects = ranking(total)
    sorted_well, not_at_all = wrong_rows(total, 200, 1.5), wrong_rows(total, 200, 0.0)

    spreads = [
        np.std([suspects.estimate(review(suspects, each, 140, s)).wrong for s in range(100)])
        for each in (sorted_well, not_at_all)
    ]

    assert spreads[0] < 0.7 * spreads[1]


def test_all_rows_reviewed_are_a_count():
    suspects, is_wrong = ranking(200), wrong_rows(200, 20, 1.0)

    found = suspects.estimate(review(suspects, is_wrong, 200, 0))

    truth = int(is_wrong.sum())
    assert (found.wrong, found.low, found.high) == (truth, truth, truth)
    assert str(found) == f"about {truth} of 200 labels are wrong (95 %: {truth} to {truth})"


def test_a_review_may_end_early_and_its_rows_are_a_sample_too():
    total, truth, estimates = 2000, 0, []
    suspects, is_wrong = ranking(total), wrong_rows(total, 200, 1.0)
    truth = int(is_wrong.sum())
    for seed in range(150):
        all_of_it = list(review(suspects, is_wrong, 140, seed).items())
        estimates.append(suspects.estimate(dict(all_of_it[:100])).wrong)

    assert abs(np.mean(estimates) - truth) < 4 * np.std(estimates) / np.sqrt(150)


def test_rows_that_nobody_can_tell_count_as_those_near_them():
    suspects = ranking(640)
    answers: dict[int, bool | None] = {int(each): False for each in suspects.sample(140).ids}
    first = max(answers)
    answers[first] = None

    found = suspects.estimate(answers)

    assert found.wrong == 0
    assert sum(each.reviewed for each in found.strata) == 139


def test_answers_may_be_pairs_of_arrays_and_ids_may_be_texts(tmp_path):
    suspects = ranking(640, texts=True)
    sample = suspects.sample(140)
    sample.save(tmp_path / "review.parquet")
    table = pq.read_table(tmp_path / "review.parquet")

    found = suspects.estimate(zip(table["ids"].to_pylist(), np.ones(140, dtype=bool), strict=True))

    assert found.wrong == pytest.approx(640)
    assert found.high == 640
    assert str(sample).startswith("140 of 640 rows to review\nid")
    assert str(sample).endswith("... 130 more")
    assert list(table.column_names) == list(suspects.columns())
    assert found.columns()["stop"].tolist() == strata_of(640)[1:].tolist()


def test_a_sample_of_another_ranking_is_refused():
    suspects = ranking(2000)
    turned = Suspects(
        suspects.ids,
        suspects.positions,
        suspects.given_labels,
        suspects.suggested_labels,
        {"loss": -suspects.scores["loss"]},
        "loss",
    ).ranked("loss")
    reviewed = {int(each): False for each in suspects.sample(140).ids}

    words = r"but \d+ of 140 reviewed rows are among the first 250 .* where a sample has 43"
    with pytest.raises(QueryError, match=words):
        turned.estimate(reviewed)


def test_rows_chosen_from_the_top_are_refused():
    suspects = ranking(2000)

    with pytest.raises(QueryError, match=r"140 of 140 reviewed rows are among the first 250"):
        suspects.estimate({int(each): True for each in suspects.top(140).ids})


@pytest.mark.parametrize(
    ("reviewed", "words"),
    [
        ({-1: True}, "the id -1, which the ranking does not have"),
        ({0: 1}, "says 1 of 0; say True where the label is wrong"),
        ({0: "yes"}, "says 'yes' of 0"),
        ([(0, True), (0, True)], "the id 0 twice"),
        ([0, 1], "reviewed is a mapping from ids"),
        (3, "int was given"),
        ({0: True}, "1 rows were reviewed, and at least 14 are needed"),
        ({}, "0 rows were reviewed"),
    ],
)
def test_answers_that_are_none_are_named(reviewed: object, words: str):
    with pytest.raises(QueryError, match=re.escape(words)):
        ranking(640).estimate(reviewed)  # pyright: ignore[reportArgumentType]


def test_a_part_of_the_ranking_of_which_nothing_is_known_is_named():
    suspects = ranking(640)
    reviewed: dict[int, bool | None] = {int(each): False for each in suspects.sample(140).ids}
    for each in reviewed:
        if each > 629:  # rows 0 to 9
            reviewed[each] = None

    with pytest.raises(QueryError, match="among rows 0 to 9 of the ranking"):
        suspects.estimate(reviewed)


@pytest.mark.parametrize(
    ("n", "seed", "words"),
    [
        (13, 0, "n=13 rows are too few to sample 7 parts"),
        (0, 0, "n=0 rows to review were asked for"),
        (641, 0, "n=641 rows to review were asked for, but there are 640. Give an n from 14"),
        (20.0, 0, "n=20.0 rows to review"),
        (True, 0, "n=True rows to review"),
        (20, -1, "seed is a whole number of at least 0; -1 was given"),
        (20, None, "None was given"),
    ],
)
def test_a_sample_that_cannot_be_is_refused(n: int, seed: int, words: str):
    with pytest.raises(QueryError, match=words):
        ranking(640).sample(n, seed)


def test_a_short_ranking_is_for_looking_at_all_of_it():
    with pytest.raises(QueryError, match="13 rows is too short to sample: look at all of them"):
        ranking(13).sample(13)
    with pytest.raises(QueryError, match="13 rows is too short"):
        ranking(13).estimate({})


@pytest.mark.parametrize("total", [14, 15, 33, 100, 1001])
@pytest.mark.parametrize("n", [14, 20, 64])
def test_every_stratum_of_a_short_ranking_is_seen(total: int, n: int):
    sizes = np.diff(strata_of(total))
    n = min(n, total)

    counts = allocation(sizes, n)

    assert sizes.sum() == total
    assert counts.sum() == max(n, np.minimum(sizes, 2).sum())
    assert (counts >= np.minimum(sizes, 2)).all()
    assert (counts <= sizes).all()
    assert estimated({each: each for each in range(total)}, review_all(total)).wrong == total


def review_all(total: int) -> dict[int, bool]:
    return dict.fromkeys(range(total), True)
