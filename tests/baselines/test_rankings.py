"""Scores without gradients, against what their papers define; and what every baseline keeps to."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tracin
from tracin import baselines
from tracin.analysis import HighestWrong, found_curve, noisy_labels
from tracin.errors import (
    DataError,
    LossError,
    NonFiniteError,
    QueryError,
    UnsupportedModelError,
)

from .conftest import Task, run_of


def all_of(run: tracin.TracIn) -> list[baselines.Baseline]:
    last = tracin.TracIn(
        run.model, run.loss, run.checkpoints, parameters="last", learning_rates="equal"
    )
    return [
        baselines.Loss(run),
        baselines.GraNd(run),
        baselines.EL2N(run),
        baselines.Margin(run),
        baselines.MeanProbability(run),
        baselines.AreaUnderMargin(run),
        baselines.Forgetting(run),
        baselines.NearestNeighbours(run, k=5),
        baselines.RepresenterPoints(run, l2=0.01),
        baselines.InfluenceFunctions(last, damping=1.0),
    ]


def name_of(value: object) -> str:
    return type(value).__name__


def logits_at_checkpoints(task: Task) -> torch.Tensor:
    """[checkpoints, examples, classes], the plain way."""
    model = copy.deepcopy(task.model).eval()
    found = []
    for checkpoint in task.run.checkpoints:
        model.load_state_dict(dict(checkpoint.weights()))
        found.append(model(task.train[0]).detach().double())
    return torch.stack(found)


def expected(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    probabilities = logits.softmax(2)
    rows = torch.arange(len(labels))
    right = F.one_hot(labels, 10)

    def lead(values):
        return values[:, rows, labels] - (values - 1e9 * right).amax(2)

    return {
        "Loss": torch.stack([F.cross_entropy(e, labels, reduction="none") for e in logits]).mean(0),
        "EL2N": (probabilities - right).norm(dim=2).mean(0),
        "Margin": -lead(probabilities).mean(0),
        "MeanProbability": 1 - probabilities[:, rows, labels].mean(0),
        "AreaUnderMargin": -lead(logits).mean(0),
    }


@pytest.mark.parametrize("name", ["Loss", "EL2N", "Margin", "MeanProbability", "AreaUnderMargin"])
def test_a_score_is_what_its_definition_says(network: Task, name: str):
    wanted = expected(logits_at_checkpoints(network), network.train[1])[name]

    found = getattr(baselines, name)(network.run).scores(network.train, batch_size=64)

    assert found.name == name
    assert found.values == pytest.approx(wanted.numpy(), rel=1e-4, abs=1e-5)


def test_grand_is_the_mean_length_of_gradients(network: Task):
    weighted = tracin.TracIn(
        network.model, "cross_entropy", network.run.checkpoints, learning_rates=[0.1, 3.0, 7.0]
    )
    lengths = [
        tracin.TracIn(network.model, "cross_entropy", [one], learning_rates="equal")
        .self_influence(network.train)
        .sqrt()
        for one in network.run.checkpoints
    ]

    found = baselines.GraNd(weighted).scores(network.train)

    assert found.values == pytest.approx(torch.stack(lengths).mean(0).numpy(), rel=1e-4)


def test_forgetting_counts_from_right_to_wrong():
    model = torch.nn.Linear(1, 2, bias=False)

    def weights(sign: float) -> dict[str, torch.Tensor]:
        return {"weight": torch.tensor([[0.0], [sign]])}

    states = [weights(sign) for sign in (1, -1, 1, -1, -1)]
    run = tracin.TracIn(model, "cross_entropy", states, learning_rates="equal")
    train = torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([1, 0, 1])

    found = baselines.Forgetting(run).scores(train)

    # The third is at a tie, which the first class wins: never right, so above all counts.
    assert found.values.tolist() == [2.0, 1.0, 5.0]


def test_forgetting_takes_checkpoints_in_the_order_of_their_steps():
    model = torch.nn.Linear(1, 2, bias=False)
    signs = {1: 1.0, 2: 1.0, 3: -1.0, 4: -1.0}
    checkpoints = [
        tracin.Checkpoint({"weight": torch.tensor([[0.0], [signs[step]]])}, step=step)
        for step in (3, 1, 4, 2)
    ]
    run = tracin.TracIn(model, "cross_entropy", checkpoints, learning_rates="equal")

    found = baselines.Forgetting(run).scores((torch.ones(1, 1), torch.tensor([1])))

    assert found.values.tolist() == [1.0]


def test_one_checkpoint_forgets_nothing(network: Task):
    run = run_of(network.model, "cross_entropy")

    with pytest.raises(QueryError, match=r"at least two, best one per epoch; this run has 1"):
        baselines.Forgetting(run)


@pytest.mark.parametrize("at", range(10), ids=lambda at: str(at))
def test_every_baseline_leaves_the_users_world_as_it_was(network: Task, at: int):
    method = all_of(network.run)[at]
    network.model.train()
    network.model[0].weight.grad = torch.ones(16, 64)
    state = copy.deepcopy(network.model.state_dict())
    hooks = [len(each._forward_hooks) for each in network.model.modules()]
    random = torch.get_rng_state()
    ids = np.array([f"image {at}" for at in range(200)])

    found = method.scores(tracin.WithIds(network.train, ids), batch_size=50)

    assert found.ids.tolist() == ids.tolist()
    assert found.values.dtype == np.float64
    assert found.values.shape == (200,)
    assert np.isfinite(found.values).all()
    assert network.model.training
    assert torch.equal(network.model[0].weight.grad, torch.ones(16, 64))
    assert all(torch.equal(value, state[key]) for key, value in network.model.state_dict().items())
    assert [len(each._forward_hooks) for each in network.model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("at", range(10), ids=lambda at: str(at))
def test_the_size_of_batches_changes_nothing(network: Task, at: int):
    method = all_of(network.run)[at]

    one, other = (method.scores(network.train, batch_size=size).values for size in (40, 200))

    assert one == pytest.approx(other, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("at", range(2, 9), ids=lambda at: str(at))
def test_regression_is_refused_where_classes_are_compared(at: int):
    model = torch.nn.Linear(2, 1)
    states = [{"weight": torch.full((1, 2), x), "bias": torch.zeros(1)} for x in (0.0, 1.0)]
    run = tracin.TracIn(model, "mse", states, learning_rates="equal")

    with pytest.raises(LossError, match=r"this loss gives none.*For regression there are"):
        all_of(run)[at].scores((torch.randn(8, 2), torch.randn(8)))


def test_labels_per_position_are_refused():
    model = torch.nn.Conv1d(2, 3, 1)
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    data = torch.randn(4, 2, 5), torch.randint(3, (4, 5))

    with pytest.raises(LossError, match=r"one label per example.*\(4, 3, 5\)"):
        baselines.EL2N(run).scores(data)


def test_a_baseline_needs_a_run(network: Task):
    with pytest.raises(QueryError, match=r"EL2N takes a run.*Sequential was given"):
        baselines.EL2N(network.model)  # type: ignore[arg-type]


def test_planted_labels_are_found(network: Task):
    inputs, labels = network.train
    state = network.run.checkpoints[-1].weights()
    network.model.load_state_dict(dict(state))
    with torch.no_grad():
        planted = noisy_labels(labels, HighestWrong(network.model.eval()(inputs)), 0.1, seed=0)
        noisy, is_wrong = planted.labels, planted.is_noisy

    for method in all_of(network.run):
        found = method.scores((inputs, noisy))
        auroc = found_curve(found.values, is_wrong).auroc
        assert auroc > 0.7, f"{name_of(method)}: {auroc}"


def test_scores_print_and_sort_and_convert():
    scores = baselines.SuspectScores(
        "Loss", np.array(["a", "b", "c", "d"]), np.array([1.0, 3.0, 3.0, 0.0])
    )

    assert scores.top(2).ids.tolist() == ["b", "c"]
    assert scores.bottom(2).ids.tolist() == ["a", "d"]
    assert np.asarray(scores).tolist() == [1, 3, 3, 0]
    assert str(scores).splitlines()[:3] == ["ranked by Loss", "id  Loss", "b      3"]
    assert len(scores) == 4
    with pytest.raises(QueryError, match=r"k=5 suspects.*there are 4"):
        scores.top(5)


def test_neighbours_are_those_of_scikit_learn(network: Task):
    neighbors = pytest.importorskip("sklearn.neighbors")
    model = copy.deepcopy(network.model).eval()
    model.load_state_dict(dict(network.run.checkpoints[-1].weights()))
    features = model[:3](network.train[0]).detach().double().numpy()
    labels = network.train[1].numpy()
    found, near = (
        neighbors.NearestNeighbors(n_neighbors=6, metric="cosine").fit(features).kneighbors()
    )
    near, weights = near[:, :5], 1 - found[:, :5] / 2
    wanted = (weights * (labels[near] != labels[:, None])).sum(1) / weights.sum(1)

    scores = baselines.NearestNeighbours(network.run, k=5).scores(network.train)

    assert scores.values == pytest.approx(wanted, abs=1e-5)


def test_an_example_is_most_like_itself(network: Task):
    found = baselines.NearestNeighbours(network.run).influence(network.train, network.train)

    assert found.shape == (200, 200)
    torch.testing.assert_close(found.diagonal(), torch.ones(200, dtype=torch.float64))
    torch.testing.assert_close(found, found.mT)
    assert float(found.abs().max()) <= 1 + 1e-9


def test_neighbours_need_more_examples_than_k(network: Task):
    few = network.train[0][:5], network.train[1][:5]

    with pytest.raises(QueryError, match=r"k=5 neighbours.*train holds 5.*Give a smaller k"):
        baselines.NearestNeighbours(network.run, k=5).scores(few)


def test_features_need_a_linear_last_layer():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 2), torch.nn.Flatten())
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    data = torch.randn(6, 1, 2, 2), torch.randint(3, (6,))

    with pytest.raises(UnsupportedModelError, match=r"must be a torch.nn.Linear.*'0.weight'"):
        baselines.NearestNeighbours(run, k=1).scores(data)


def test_features_need_one_call_per_example():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, inputs):
            return self.layer(self.layer(inputs))

    model = Twice()
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")

    with pytest.raises(UnsupportedModelError, match=r"layer had 2 calls"):
        baselines.NearestNeighbours(run, k=1).scores((torch.randn(6, 3), torch.randint(3, (6,))))


def test_cross_validation_never_shows_a_model_what_it_judges(network: Task):
    seen: list[set[int]] = []

    def fit(positions: np.ndarray) -> torch.nn.Module:
        seen.append(set(positions.tolist()))
        model = torch.nn.Linear(64, 10)
        torch.nn.init.constant_(model.weight, 0.0)
        torch.nn.init.zeros_(model.bias)
        model.bias.data[len(seen)] = 5.0  # tells which model it was
        return model

    found = baselines.cross_validated(network.run, network.train, fit, folds=4, seed=3)

    assert found.shape == (200, 10)
    torch.testing.assert_close(found.sum(1), torch.ones(200, dtype=torch.float64))
    judges = found.argmax(1)
    assert all(at not in seen[int(judges[at]) - 1] for at in range(200))
    assert [len(each) for each in seen] == [150] * 4
    with pytest.raises(QueryError, match=r"folds is a whole number from 2 to the 200"):
        baselines.cross_validated(network.run, network.train, fit, folds=1)


def test_confident_learning_is_cleanlabs(network: Task):
    rank = pytest.importorskip("cleanlab.rank")
    filter_ = pytest.importorskip("cleanlab.filter")
    mean = logits_at_checkpoints(network).softmax(2).mean(0).numpy()
    labels = network.train[1].numpy()

    found = baselines.ConfidentLearning(network.run)
    given = baselines.ConfidentLearning(network.run, mean, quality="normalized_margin")

    assert found.scores(network.train).values == pytest.approx(
        1 - rank.get_label_quality_scores(labels, mean), abs=1e-5
    )
    assert given.scores(network.train).values == pytest.approx(
        1 - rank.get_label_quality_scores(labels, mean, method="normalized_margin"), abs=1e-9
    )
    issues = found.issues(network.train)
    assert issues.dtype == bool
    assert issues.tolist() == filter_.find_label_issues(labels, mean).tolist()


def test_probabilities_are_checked(network: Task):
    with pytest.raises(DataError, match=r"add up to 1 in each row.*softmax"):
        baselines.ConfidentLearning(network.run, torch.ones(200, 10))
    with pytest.raises(DataError, match=r"a table \[train, classes\]; shape \(3,\)"):
        baselines.ConfidentLearning(network.run, torch.ones(3))
    with pytest.raises(QueryError, match="quality is one of"):
        baselines.ConfidentLearning(network.run, quality="margin")


def test_probabilities_of_other_data_are_refused(network: Task):
    pytest.importorskip("cleanlab")
    method = baselines.ConfidentLearning(network.run, torch.full((100, 10), 0.1))

    with pytest.raises(DataError, match="they have 100 rows, and train holds 200"):
        method.scores(network.train)


def test_confident_learning_says_what_to_install(network: Task, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cleanlab.filter", None)
    monkeypatch.setitem(__import__("sys").modules, "cleanlab", None)

    with pytest.raises(QueryError, match=r"pip install '\.\[cleanlab\]' in a checkout"):
        baselines.ConfidentLearning(network.run).scores(network.train)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, -100, 1]), "a class from 0 to 1; .* one of them -100. Leave examples"),
        (torch.tensor([0, 1, 2]), "one of them 2"),
        (torch.tensor([0.0, 1.0, 1.0]), "3 of torch.float32 for 3 examples"),
        (torch.tensor([0, 1]), "2 of torch.int64 for 3 examples"),
    ],
)
def test_an_outcome_of_ones_own_needs_one_class_per_example(labels, message):
    class Own:
        def __call__(self, model, batch):
            return self.outcome(model, batch).losses

        def outcome(self, model, batch):
            logits = model(batch)
            return tracin.Outcome(logits.square().sum(1), logits, labels)

    run = run_of(torch.nn.Linear(2, 2), Own())
    for method in (baselines.EL2N, baselines.Margin, baselines.ConfidentLearning):
        with pytest.raises(LossError, match=message):
            method(run).scores(torch.randn(3, 2), batch_size=3)


def test_cross_validation_needs_new_models_with_finite_scores():
    train = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    run = run_of(torch.nn.Linear(2, 2), "cross_entropy")

    with pytest.raises(QueryError, match="fit returned the model that it had returned before"):
        baselines.cross_validated(run, train, lambda positions: run.model, folds=2)

    def diverged(positions):
        model = torch.nn.Linear(2, 2)
        model.weight.data.fill_(torch.nan)
        return model

    with pytest.raises(NonFiniteError, match="model of fold 0 are NaN or infinite"):
        baselines.cross_validated(run, train, diverged, folds=2)
