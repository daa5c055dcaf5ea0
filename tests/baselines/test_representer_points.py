"""The representers add up to the class scores, or there are none."""

import copy

import pytest
import torch
from torch.nn import functional as F

import tracin
from tracin.baselines import RepresenterPoints
from tracin.errors import CurvatureError, LossError, QueryError, UnsupportedModelError

from .conftest import Task, run_of


@pytest.mark.parametrize("name", ["digits", "network"])
def test_representers_add_up_to_the_scores(name: str, request: pytest.FixtureRequest):
    task: Task = request.getfixturevalue(name)
    fitted = RepresenterPoints(task.run, l2=1e-3).fit(task.train)

    shares = fitted.influence(task.queries)

    logits = fitted.logits(task.queries)
    assert shares.shape == (len(task.train[1]), len(task.queries[1]))
    own = logits.gather(1, task.queries[1][:, None])[:, 0]
    torch.testing.assert_close(shares.sum(0), own, rtol=1e-4, atol=1e-4)
    assert fitted.weights.shape[1] == fitted.inputs.shape[1]
    torch.testing.assert_close(
        fitted.inputs @ fitted.weights.mT,
        fitted.inputs @ (fitted.alpha.mT @ fitted.inputs).mT,
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_layer_is_the_minimum_that_scikit_learn_finds(digits: Task):
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, labels = digits.train
    wide = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1).numpy()
    # scikit-learn minimises (sum of losses + squared weights / (2 C)), here n times ours.
    slow = linear_model.LogisticRegression(
        C=1 / (2 * 1e-3 * len(labels)), fit_intercept=False, tol=1e-10, max_iter=5000
    ).fit(wide, labels.numpy())

    fitted = RepresenterPoints(digits.run, l2=1e-3).fit(digits.train)

    torch.testing.assert_close(fitted.weights, torch.from_numpy(slow.coef_), rtol=1e-3, atol=1e-4)


def test_alpha_is_the_error_of_the_probabilities(digits: Task):
    fitted = RepresenterPoints(digits.run, l2=0.01).fit(digits.train)
    labels = digits.train[1]
    errors = F.one_hot(labels, 10) - (fitted.inputs @ fitted.weights.mT).softmax(1)

    torch.testing.assert_close(fitted.alpha, errors / (2 * 0.01 * 500))
    own = errors.gather(1, labels[:, None])[:, 0] / 10
    assert fitted.scores().values == pytest.approx(own.numpy())


def test_a_layer_without_bias_has_no_feature_for_it(network: Task):
    model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU())
    model.append(torch.nn.Linear(8, 10, bias=False))

    fitted = RepresenterPoints(run_of(model, "cross_entropy")).fit(network.train)

    assert fitted.inputs.shape == (200, 8)


def test_too_few_steps_are_refused(digits: Task):
    with pytest.raises(CurvatureError, match=r"not at a stationary point after 2 steps.*larger l2"):
        RepresenterPoints(digits.run, l2=1e-3, steps=2).fit(digits.train)


def test_scores_that_the_layer_does_not_give_are_refused(network: Task):
    class Scaled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, inputs):
            return 3 * self.inner(inputs)

    run = run_of(Scaled(copy.deepcopy(network.model)), "cross_entropy")

    with pytest.raises(UnsupportedModelError, match=r"are not the outputs of inner\.3"):
        RepresenterPoints(run).fit(network.train)


def test_other_losses_are_refused(network: Task):
    class Smoothed:
        def __call__(self, model, batch):
            return self.outcome(model, batch).losses

        def outcome(self, model, batch):
            logits = model(batch[0])
            losses = F.cross_entropy(logits, batch[1], reduction="none", label_smoothing=0.3)
            return tracin.Outcome(losses, logits, batch[1])

    with pytest.raises(LossError, match=r"by cross-entropy, and this loss gives other values"):
        RepresenterPoints(run_of(network.model, Smoothed())).fit(network.train)


def test_arguments_are_checked(network: Task):
    with pytest.raises(QueryError, match="l2 is a number above 0; 0 was given"):
        RepresenterPoints(network.run, l2=0)
    with pytest.raises(QueryError, match="steps is a whole number"):
        RepresenterPoints(network.run, steps=0)
