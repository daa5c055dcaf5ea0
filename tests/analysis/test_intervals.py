"""Student's t without scipy, against scipy and simulated coverage; and scores of any origin."""

import math
import sys

import numpy as np
import pytest
import torch

from tracin.analysis import compare_found, found_curve
from tracin.analysis.given_scores import given_scores
from tracin.analysis.intervals import seed_interval, t_quantile
from tracin.errors import DataError, NonFiniteError, QueryError


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 100, 1001])
def test_the_quantile_is_scipys(degrees):
    stats = pytest.importorskip("scipy.stats")

    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)
    assert t_quantile(degrees, 0.5) == pytest.approx(stats.t.ppf(0.75, degrees), rel=1e-9)


def test_the_interval_holds_the_mean_95_times_in_100():
    values = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) + 7

    interval = seed_interval(values)

    held = ((interval.low <= 7) & (interval.high >= 7)).double().mean()
    assert float(held) == pytest.approx(0.95, abs=0.006)


def test_one_seed_has_a_mean_and_no_interval():
    interval = seed_interval(torch.tensor([[1.0], [2.0]]))

    assert interval.mean.tolist() == [1.0, 2.0]
    assert all(math.isnan(half) for half in interval.half.tolist())


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        (torch.zeros(2, 0), QueryError, r"at least one value, \[..., seeds\]; came \[2, 0\]"),
        (torch.tensor([1.0, torch.nan]), NonFiniteError, "NaN or infinite, so its mean"),
    ],
)
def test_what_has_no_mean_is_refused(values, error, words):
    with pytest.raises(error, match=words):
        seed_interval(values)


def test_scores_come_from_anything_that_holds_numbers():
    pandas = pytest.importorskip("pandas")

    class Result:
        scores = torch.tensor([3.0, 1.0])

    for given in ([3, 1], np.array([3, 1]), pandas.Series([3, 1]), torch.tensor([3, 1]), Result()):
        assert given_scores(given).tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (torch.zeros(2, 3), DataError, r"\[train\]; came \[2, 3\]. Of an influence matrix"),
        (["a", "b"], DataError, "must be numbers: a tensor, an array"),
        ([1.0, math.nan], NonFiniteError, r"example 1 is NaN \(1 in all\)"),
    ],
)
def test_what_holds_no_scores_is_refused(given, error, words):
    with pytest.raises(error, match=words):
        given_scores(given)


def curves(seeds):
    is_wrong = torch.arange(30) < 6
    return [
        found_curve(torch.randn(30, generator=torch.Generator().manual_seed(seed)), is_wrong)
        for seed in seeds
    ]


def test_a_comparison_shows_means_over_seeds_and_the_limits():
    each = curves(range(4))

    compared = compare_found({"mine": each, "other": each[0]})

    columns = compared.columns()
    assert columns["ranking"].tolist() == ["mine", "other", "random", "best possible"]
    aurocs = torch.tensor([one.auroc for one in each], dtype=torch.float64)
    assert columns["AUROC"][0] == pytest.approx(float(aurocs.mean()))
    half = 3.182446 * float(aurocs.std()) / 2
    assert columns["AUROC +-"][0] == pytest.approx(half, rel=1e-6)
    assert math.isnan(columns["AUROC +-"][1])
    assert columns["AUROC"][2:].tolist() == [0.5, 1.0]
    assert "+-" in str(compared).splitlines()[2]
    assert "+-" not in str(compared).splitlines()[3]


def test_a_comparison_needs_curves_of_one_kind():
    with pytest.raises(QueryError, match="at least one curve"):
        compare_found({"none": []})
    other = found_curve([1.0, 2.0], [True, False])
    with pytest.raises(QueryError, match="the same number of examples and the same shares"):
        compare_found({"a": curves([0]), "b": other})


def test_results_draw_themselves_on_axes_given_or_new(monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    _, ax = pyplot.subplots()
    compared = compare_found({"mine": curves(range(3))})

    assert compared.plot(ax) is ax
    assert curves([0])[0].plot() is not ax
    labels = [line.get_label() for line in ax.get_lines()]
    assert labels == ["random", "best possible", "mine"]
    assert ax.get_lines()[2].get_ydata()[-1] == pytest.approx(1)
    pyplot.close("all")

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(QueryError, match="pip install matplotlib"):
        compared.plot()


def test_tables_reach_other_libraries():
    pyarrow = pytest.importorskip("pyarrow")
    compared = compare_found({"mine": curves(range(3))})

    assert pyarrow.table(compared).num_rows == 3
    assert pyarrow.table(curves([0])[0]).num_rows == 31
