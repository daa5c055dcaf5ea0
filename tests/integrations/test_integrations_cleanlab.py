"""The issue manager by a stand-in of Datalab, and in Datalab itself where it is installed."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tracin
from tracin.errors import DataError, QueryError

cleanlab = pytest.importorskip("cleanlab")
from tracin.integrations.cleanlab import SuspectIssueManager  # noqa: E402

EXAMPLES = 30
NAMES = ["zebra", "ape", "bear"]  # by class; Datalab numbers them by the alphabet


@pytest.fixture(scope="module")
def labels():
    return torch.arange(EXAMPLES) % 3


@pytest.fixture(scope="module")
def suspects(labels):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3, bias=False)
    inputs = torch.eye(3)[labels] + torch.randn(EXAMPLES, 3) / 4
    inputs[4] = torch.eye(3)[0]  # of class 1
    weights = {"weight": 4 * torch.eye(3)}
    run = tracin.TracIn(model, "cross_entropy", [weights], learning_rates="equal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tracin.MemorisedWarning)
        return run.find_mislabelled((inputs, labels))


@pytest.fixture(scope="module")
def prices():
    model = torch.nn.Linear(1, 1, bias=False)
    run = tracin.TracIn(model, "mse", [{"weight": torch.ones(1, 1)}], learning_rates="equal")
    inputs = torch.arange(8.0)[:, None]
    return run.find_mislabelled((inputs, inputs[:, 0] + torch.eye(8)[5]))


def datalab_of(labels, class_names=("0", "1", "2")):
    """What the manager asks of a Datalab."""
    return SimpleNamespace(
        data=list(labels), labels=np.asarray(labels), has_labels=True, class_names=class_names
    )


def test_scores_and_flags_stand_in_the_order_of_the_data(suspects, labels):
    manager = SuspectIssueManager(datalab_of(labels), suspects=suspects)

    manager.find_issues(suspects=suspects)

    scores = manager.issues.tracin_suspect_score.to_numpy()
    flagged = np.flatnonzero(manager.issues.is_tracin_suspect_issue)
    assert np.argsort(scores, kind="stable").tolist() == suspects.positions.tolist()
    assert scores.min() == pytest.approx(0.5 / EXAMPLES)
    assert scores.max() < 1
    assert flagged.tolist() == [4]
    assert manager.info["suggested_label"][4] == 0
    assert manager.info["given_label"] == labels.tolist()
    assert manager.summary.score.tolist() == [1 - 1 / EXAMPLES]


def test_a_count_flags_the_first_of_the_ranking_whatever_leads_it(suspects, labels):
    ranked = suspects.ranked("given_probability")
    manager = SuspectIssueManager(datalab_of(labels), ranked, 3)

    manager.find_issues()

    flagged = np.flatnonzero(manager.issues.is_tracin_suspect_issue)
    assert sorted(flagged) == sorted(ranked.positions[:3])
    assert manager.issues.tracin_suspect_score.idxmin() == ranked.positions[0]
    assert manager.info["ranked_by"] == "given_probability"


def test_numbers_need_a_count_and_may_have_another_scale(prices):
    datalab = datalab_of(10 * prices.given_labels[np.argsort(prices.positions)] - 3)

    with pytest.raises(QueryError, match="whole number from 1 to 8, or None for classes"):
        SuspectIssueManager(datalab, prices)
    manager = SuspectIssueManager(datalab, prices, 1)
    manager.find_issues()

    assert np.flatnonzero(manager.issues.is_tracin_suspect_issue).tolist() == [5]
    with pytest.raises(DataError, match="sorted by them, the ranked targets are not in order"):
        SuspectIssueManager(datalab_of(-datalab.labels), prices, 1)


def test_what_is_no_ranking_of_this_data_is_refused(suspects, labels):
    with pytest.raises(QueryError, match=r'"tracin_suspect": \{"suspects": suspects\}\}, with'):
        SuspectIssueManager(datalab_of(labels))
    with pytest.raises(QueryError, match=r"from 1 to 30, or None for classes .*; 31 was given"):
        SuspectIssueManager(datalab_of(labels), suspects, 31)
    with pytest.raises(DataError, match="holds 30 examples, but the suspects are 10 rows"):
        SuspectIssueManager(datalab_of(labels), suspects.top(10))
    swapped = labels.clone()
    swapped[[0, 1]] = labels[[1, 0]]
    words = "positions 0 and 3 have one class, but the ranking has 0 and 0 there, the Datalab '1'"
    with pytest.raises(DataError, match=words):
        SuspectIssueManager(datalab_of(swapped), suspects)
    merged = labels.clamp(max=1)
    with pytest.raises(DataError, match="have one label, but the ranking has 1 and 2 there"):
        SuspectIssueManager(datalab_of(merged), suspects)


def test_datalab_reports_suspects_next_to_its_own_issues(suspects, labels, capsys):
    pytest.importorskip("datasets")
    lab = cleanlab.Datalab({"animal": [NAMES[label] for label in labels]}, label_name="animal")
    probabilities = np.full((EXAMPLES, 3), 0.1)
    probabilities[np.arange(EXAMPLES), lab.labels] = 0.8

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that classes of ten examples are small
        lab.find_issues(
            pred_probs=probabilities,
            issue_types={"label": {}, "tracin_suspect": {"suspects": suspects, "count": 2}},
        )
    lab.report()

    issues = lab.get_issues("tracin_suspect")
    assert list(issues.columns) == ["is_tracin_suspect_issue", "tracin_suspect_score"]
    flagged = np.flatnonzero(issues.is_tracin_suspect_issue)
    assert sorted(flagged) == sorted(suspects.positions[:2])
    assert not [name for name in lab.get_issues("label").columns if "tracin" in name]
    assert "ranked_by: loss_and_margin" in capsys.readouterr().out
    with pytest.raises(DataError, match="holds 30 examples, but the suspects are 3 rows"):
        lab.find_issues(issue_types={"tracin_suspect": {"suspects": suspects.top(3)}})


def test_datalab_reports_numbers_too(prices):
    pytest.importorskip("datasets")
    given = prices.given_labels[np.argsort(prices.positions)]
    lab = cleanlab.Datalab({"price": given.tolist()}, label_name="price", task="regression")

    lab.find_issues(issue_types={"tracin_suspect": {"suspects": prices, "count": 1}})

    assert np.flatnonzero(lab.get_issues("tracin_suspect").iloc[:, 0]).tolist() == [5]
