"""Influence functions predict retraining without an example, whichever way H is inverted."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, hessian, jacrev

import tracin
from tracin.baselines import ConjugateGradient, Direct, InfluenceFunctions, LiSSA, gradient_rows
from tracin.errors import (
    CurvatureError,
    CurvatureWarning,
    NonFiniteError,
    QueryError,
    UnsupportedModelError,
)

from .conftest import L2, Task, binary, minimised, regularised, run_of

pytestmark = pytest.mark.slow  # retrains for each example that it leaves out


def pearson(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def few(task: Task) -> tuple[Tensor, Tensor]:
    return task.queries[0][:4], task.queries[1][:4]


def without(task: Task, loss, example: int) -> Tensor:
    """How much the queries' losses rise by exact training without an example: [queries]."""
    model = copy.deepcopy(task.model)
    kept = torch.arange(len(task.train[1])) != example
    rest = task.train[0][kept], task.train[1][kept]
    share = len(rest[1]) / len(task.train[1])  # the mean stays over n

    def objective() -> Tensor:
        whole = regularised(model, loss, rest)
        return whole + (share - 1) * loss(model, rest).mean()

    minimised(model, objective)
    with torch.no_grad():
        return loss(model, task.queries) - loss(task.model, task.queries)


def written_out(task: Task, loss, damping: float) -> Tensor:
    """The slow way, with torch.func: [train, queries]."""
    parameters = {name: p.detach() for name, p in task.model.named_parameters()}
    names = list(parameters)

    def losses(values, batch):
        wrapped = torch.nn.Module()
        wrapped.forward = lambda x: functional_call(task.model, values, (x,))
        return loss(wrapped, batch)

    def flat(tree):
        return torch.cat([tree[name].flatten(1) for name in names], 1)

    blocks = hessian(lambda values: losses(values, task.train).mean())(parameters)
    matrix = torch.cat(
        [
            torch.cat(
                [blocks[a][b].reshape(parameters[a].numel(), -1) for b in names], 1
            )
            for a in names
        ]
    )  # fmt: skip
    matrix += damping * torch.eye(len(matrix), dtype=matrix.dtype)
    train = flat(jacrev(lambda values: losses(values, task.train))(parameters))
    queries = flat(jacrev(lambda values: losses(values, task.queries))(parameters))
    return train @ torch.linalg.solve(matrix, queries.mT) / len(train)


def test_it_predicts_exact_retraining_of_logistic_regression(cancer: Task):
    found = InfluenceFunctions(cancer.run, damping=L2).influence(cancer.train, cancer.queries)
    strong = found.abs().sum(1).argsort(descending=True)[:10].tolist()
    chosen = [*strong, *range(0, 400, 40)]

    true = torch.stack([without(cancer, binary, each) for each in chosen])

    assert found.shape == (400, 40)
    assert found.dtype == torch.float64
    assert pearson(found[chosen], true) > 0.99
    slope = float((found[chosen] * true).sum() / true.square().sum())
    assert 0.8 < slope < 1.2


def test_it_predicts_exact_retraining_of_softmax_regression(digits: Task):
    loss = tracin.CrossEntropy()
    found = InfluenceFunctions(digits.run, damping=L2).influence(digits.train, digits.queries)
    chosen = [*found.abs().sum(1).argsort(descending=True)[:3].tolist(), *range(0, 500, 150)]

    true = torch.stack([without(digits, loss, each) for each in chosen])

    assert pearson(found[chosen], true) > 0.99


@pytest.mark.parametrize("name", ["cancer", "digits"])
def test_it_equals_the_slow_way(name: str, request: pytest.FixtureRequest):
    task: Task = request.getfixturevalue(name)
    loss = binary if name == "cancer" else tracin.CrossEntropy()

    found = InfluenceFunctions(task.run, damping=L2).influence(task.train, task.queries)

    torch.testing.assert_close(found, written_out(task, loss, L2), rtol=1e-8, atol=1e-12)


def test_conjugate_gradient_equals_the_direct_inverse(cancer: Task):
    direct = InfluenceFunctions(cancer.run, damping=L2)
    iterative = replace(direct, solver=ConjugateGradient(tolerance=1e-9))

    wanted = direct.influence(cancer.train, cancer.queries)
    found = iterative.influence(cancer.train, cancer.queries, batch_size=64)

    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    own, self_wanted = (
        each.scores(tuple(part[:30] for part in cancer.train)).values
        for each in (iterative, direct)
    )
    assert own == pytest.approx(self_wanted, rel=1e-5)


def test_lissa_over_all_examples_converges_to_the_direct_inverse(cancer: Task):
    direct = InfluenceFunctions(cancer.run, damping=0.3)
    series = replace(direct, solver=LiSSA(depth=400, examples=None))

    wanted = direct.influence(cancer.train, few(cancer))
    found = series.influence(cancer.train, few(cancer))

    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_lissa_over_random_batches_comes_close(cancer: Task):
    direct = InfluenceFunctions(cancer.run, damping=0.1)
    solver = LiSSA(depth=300, repeats=2, examples=64, tolerance=0.5)

    wanted = direct.influence(cancer.train, few(cancer))
    found = replace(direct, solver=solver).influence(cancer.train, few(cancer))
    again = replace(direct, solver=solver).influence(cancer.train, few(cancer))

    assert pearson(found, wanted) > 0.99
    assert torch.equal(found, again)


def test_scores_are_the_influence_of_examples_on_themselves(digits: Task):
    few = digits.train[0][:40], digits.train[1][:40]
    fitted = InfluenceFunctions(digits.run, damping=L2).fit(digits.train)

    own = fitted.scores(few)

    assert own.values == pytest.approx(fitted.influence(few, few).diagonal().numpy())
    assert (own.values > 0).all()


def test_scores_estimated_from_random_vectors_are_right_on_average(digits: Task):
    fitted = InfluenceFunctions(digits.run, damping=L2).fit(digits.train)
    exact = torch.from_numpy(fitted.scores(digits.train).values)

    every = [
        torch.from_numpy(fitted.estimated_scores(digits.train, probes=50, seed=seed).values)
        for seed in range(20)
    ]

    error = (torch.stack(every).mean(0) / exact - 1).square().mean().sqrt()
    single = (every[0] / exact - 1).square().mean().sqrt()
    assert error < 0.35 * single  # sqrt(20) times less, up to chance
    assert pearson(torch.stack(every).mean(0), exact) > 0.98


def test_gradients_that_fill_memory_come_in_smaller_batches(
    network: Task, monkeypatch: pytest.MonkeyPatch
):
    last = run_of(network.model, "cross_entropy", "last")
    fitted = InfluenceFunctions(last, damping=0.01).fit(network.train)
    wanted = fitted.scores(network.train, batch_size=50).values

    monkeypatch.setattr(gradient_rows, "HELD", 8 * 7 * fitted.inverse.values.numel())

    assert fitted.scores(network.train, batch_size=50).values == pytest.approx(wanted)


def test_a_fit_answers_as_often_as_asked(digits: Task):
    whole = InfluenceFunctions(digits.run, damping=L2)
    fitted = whole.fit(digits.train, batch_size=100)

    found = fitted.influence(digits.train, digits.queries, batch_size=7)

    torch.testing.assert_close(found, whole.influence(digits.train, digits.queries))


def test_batches_and_their_order_change_nothing(network: Task):
    last = run_of(network.model, "cross_entropy", "last")
    method = InfluenceFunctions(last, damping=0.01)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    shuffled = network.train[0][order], network.train[1][order]

    one = method.influence(network.train, network.queries, batch_size=33)
    other = method.influence(shuffled, network.queries)

    torch.testing.assert_close(one[order], other, rtol=1e-3, atol=1e-6)


def test_the_last_layer_and_conjugate_gradient_agree_on_a_network(network: Task):
    last = run_of(network.model, "cross_entropy", "last")
    direct = InfluenceFunctions(last, damping=0.01)
    iterative = replace(direct, solver=ConjugateGradient(tolerance=1e-5))

    wanted = direct.influence(network.train, network.queries)
    found = iterative.influence(network.train, network.queries)

    assert float((found - wanted).norm() / wanted.norm()) < 1e-3


@pytest.mark.parametrize("solver", [Direct(), ConjugateGradient(), LiSSA(examples=None)])
def test_a_hessian_that_is_not_positive_definite_is_refused(network: Task, solver):
    run = tracin.TracIn(
        network.model, "cross_entropy", network.run.checkpoints[:1], learning_rates="equal"
    )

    with pytest.raises(CurvatureError, match=r"smallest eigenvalue.*-0\.[12].*Pass a damping of"):
        InfluenceFunctions(run, damping=1e-5, solver=solver).influence(
            network.train, network.queries
        )


def test_the_damping_that_is_proposed_will_do(network: Task):
    with pytest.raises(CurvatureError) as caught:
        InfluenceFunctions(network.run, damping=0.0).fit(network.train)
    proposed = float(str(caught.value).split("damping of ")[1].split(" or more")[0])

    InfluenceFunctions(network.run, damping=proposed).fit(network.train)


def test_flat_directions_of_a_softmax_need_damping(digits: Task):
    with pytest.raises(CurvatureError, match="not positive definite"):
        InfluenceFunctions(digits.run, damping=0.0).fit(digits.train)


def test_too_few_steps_are_said(cancer: Task):
    solver = ConjugateGradient(tolerance=1e-9, steps=2)

    with pytest.warns(CurvatureWarning, match="has not reached its tolerance of 1e-09 in 2 steps"):
        InfluenceFunctions(cancer.run, damping=L2, solver=solver).influence(
            cancer.train, cancer.queries
        )


def test_a_short_series_is_said(cancer: Task):
    with pytest.warns(CurvatureWarning, match="LiSSA is .* away from a solution"):
        InfluenceFunctions(cancer.run, damping=L2, solver=LiSSA(depth=3, examples=None)).influence(
            cancer.train, cancer.queries
        )


def test_a_series_that_diverges_is_refused(cancer: Task):
    solver = LiSSA(depth=3000, examples=None, scale=0.01)

    with pytest.raises(CurvatureError, match=r"LiSSA diverges.*Pass scale=0\.1"):
        InfluenceFunctions(cancer.run, damping=L2, solver=solver).influence(
            cancer.train, cancer.queries
        )


def test_arguments_are_checked(network: Task):
    with pytest.raises(QueryError, match=r"1,210 numbers, more than most=100.*parameters=.last"):
        InfluenceFunctions(network.run, damping=1.0, solver=Direct(most=100)).fit(network.train)
    with pytest.raises(QueryError, match=r"damping is a number of at least 0.*-1"):
        InfluenceFunctions(network.run, damping=-1)
    with pytest.raises(QueryError, match="solver is Direct"):
        InfluenceFunctions(network.run, damping=1, solver=Direct)  # type: ignore[arg-type]
    with pytest.raises(QueryError, match=r"from 0 to 2.*3 was given"):
        InfluenceFunctions(network.run, damping=1, checkpoint=3)
    with pytest.raises(QueryError, match=r"probes.*0"):
        InfluenceFunctions(run_of(network.model, "cross_entropy", "last"), damping=0.01).fit(
            network.train
        ).estimated_scores(network.train, probes=0)
    with pytest.raises(QueryError, match="takes a run"):
        InfluenceFunctions(network.model, damping=1)  # type: ignore[arg-type]


def test_a_part_without_second_derivatives_is_named():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient * 2

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, inputs):
            return Once.apply(self.layer(inputs)).tanh()

    run = run_of(Model(), "mse")
    data = torch.randn(6, 2), torch.randn(6)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UnsupportedModelError, match="needs second derivatives"):
            InfluenceFunctions(run, damping=1.0).fit(data)


@pytest.mark.parametrize("solver", [Direct(), ConjugateGradient(), LiSSA(depth=5)])
def test_an_infinite_loss_is_named_not_called_a_curvature(solver):
    inputs = torch.randn(6, 2)
    inputs[4] = torch.nan
    run = run_of(torch.nn.Linear(2, 2), "cross_entropy")

    with pytest.raises(NonFiniteError, match="The loss of example 4 is nan at checkpoint"):
        InfluenceFunctions(run, 1.0, solver).influence(
            (inputs, torch.tensor([0, 1, 0, 1, 0, 1])), (torch.randn(1, 2), torch.tensor([0]))
        )
