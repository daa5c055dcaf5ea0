"""Targets: the queries' gradients are of something else than their loss, which proponents raise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import slow_twin
import tracin
from tracin.errors import CoupledExamplesError, LossError, NonFiniteError, QueryError

CLASSES = 3


def net(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, CLASSES)
    ).double()


@pytest.fixture
def weights() -> list[dict[str, Tensor]]:
    return [
        {name: each.clone() for name, each in net(seed).state_dict().items()} for seed in (1, 2)
    ]


@pytest.fixture
def train() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(40) % CLASSES


@pytest.fixture
def queries(weights: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of which the two checkpoints predict different classes, and whose labels are others again."""
    generator = torch.Generator().manual_seed(7)
    inputs = 2 * torch.randn(9, 4, generator=generator, dtype=torch.float64)
    first, last = (predicted(each, inputs) for each in weights)
    assert (first != last).any()
    return inputs, (last + 1) % CLASSES


@pytest.fixture
def run(weights: list[dict[str, Tensor]]) -> tracin.TracIn:
    return tracin.TracIn(net(0), "cross_entropy", weights, learning_rates=[0.5, 0.25])


def predicted(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    return torch.func.functional_call(net(0), weights, (inputs,)).argmax(1)


def slowly(weights: list[dict[str, Tensor]], train: Any, queries: Any, quantity: Any) -> Tensor:
    """Sum over checkpoints of rate x gradient of train's loss . gradient of minus the quantity."""
    total = torch.zeros(len(train[0]), len(queries[0]), dtype=torch.float64)
    for rate, each in zip((0.5, 0.25), weights, strict=True):
        model = net(0)
        model.load_state_dict(each)
        losses = slow_twin.gradients(model, "cross_entropy", train)
        wanted = slow_twin.gradients(model, lambda m, b: -quantity(m, b), queries)
        total += rate * slow_twin.dots(losses, wanted)
    return total


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    mine = F.one_hot(labels, CLASSES).bool()
    return logits[mine] - logits[~mine].view(-1, CLASSES - 1).max(1).values


QUANTITIES = {
    "predicted": (
        tracin.Predicted(),
        None,
        lambda m, b: m(b[0]).log_softmax(1).gather(1, b[1][:, None])[:, 0],
    ),
    "logit": (tracin.Logit(), None, lambda m, b: m(b[0]).gather(1, b[1][:, None])[:, 0]),
    "logit of a class": (tracin.Logit(2), 2, lambda m, b: m(b[0])[:, 2]),
    "margin": (tracin.LogitMargin(), None, lambda m, b: margin(m(b[0]), b[1])),
    "margin of a class": (tracin.LogitMargin(1), 1, lambda m, b: margin(m(b[0]), b[1])),
    "function": (lambda m, b: m(b[0])[:, 0].square(), None, lambda m, b: m(b[0])[:, 0].square()),
}


@pytest.mark.parametrize("name", QUANTITIES, ids=QUANTITIES)
def test_scores_are_those_of_the_quantity(name, run, weights, train, queries):
    target, label, quantity = QUANTITIES[name]
    labels = predicted(weights[-1], queries[0]) if label is None else torch.full((9,), label)
    expected = slowly(weights, train, (queries[0], labels), quantity)

    matrix = run.influence(train, queries, target=target)
    found = run.explain(train, queries, k=3, target=target)

    torch.testing.assert_close(matrix, expected, rtol=1e-10, atol=1e-12)
    assert (
        found.proponents.positions == expected.T.argsort(1, descending=True)[:, :3].numpy()
    ).all()
    best = expected.T.sort(1).values[:, :3]
    torch.testing.assert_close(found.opponents.scores, best, rtol=1e-10, atol=1e-12)


def test_predicted_is_the_loss_with_the_predicted_labels(run, weights, train, queries):
    relabelled = queries[0], predicted(weights[-1], queries[0])

    expected = run.influence(train, relabelled, group="mean")

    found = run.influence(train, queries, group="mean", target=tracin.Predicted())
    torch.testing.assert_close(found, expected)


def test_a_step_on_a_proponent_raises_the_target(run, weights, train, queries):
    one = queries[0][:1], queries[1][:1]
    found = run.explain(train, one, k=1, target=tracin.Logit(0))[0]
    best = found.proponents[0].position
    model = net(0)
    model.load_state_dict(weights[-1])
    before = model(one[0])[0, 0].item()

    F.cross_entropy(model(train[0][best : best + 1]), train[1][best : best + 1]).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 1e-4 * parameter.grad

    assert found.proponents[0].by_checkpoint[-1] > 0
    assert model(one[0])[0, 0].item() > before


@pytest.mark.parametrize(
    "preconditioner",
    [tracin.KFAC(damping=0.1), tracin.EKFAC(damping=0.1), tracin.Kernel(landmarks=20)],
    ids=["kfac", "ekfac", "kernel"],
)
def test_preconditioners_multiply_the_gradient_of_the_target(
    preconditioner, weights, train, queries
):
    run = tracin.TracIn(net(0), "cross_entropy", weights, preconditioner=preconditioner)
    relabelled = queries[0], predicted(weights[-1], queries[0])

    expected = run.influence(train, relabelled)

    found = run.influence(train, queries, target=tracin.Predicted())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("preconditioner", [None, tracin.KFAC(damping=0.1)], ids=["none", "kfac"])
def test_an_index_answers_for_targets(preconditioner, weights, train, queries, tmp_path: Path):
    run = tracin.TracIn(
        net(0), "cross_entropy", weights, learning_rates="equal", preconditioner=preconditioner
    )
    index = run.index(
        train, tmp_path, tracin.Projection(dim=64), number_format="float32", recall_queries=0
    )
    relabelled = queries[0], predicted(weights[-1], queries[0])
    logit = QUANTITIES["logit of a class"][2]

    torch.testing.assert_close(
        index.influence(queries, target=tracin.Predicted()), index.influence(relabelled)
    )
    torch.testing.assert_close(
        index.influence(queries, target=logit), index.influence(queries, target=tracin.Logit(2))
    )
    exact = index.explain(queries, k=4, exact=True, candidates=10, target=logit)
    direct = run.explain(train, queries, k=4, target=logit)
    assert (exact.proponents.positions == direct.proponents.positions).all()
    torch.testing.assert_close(
        exact.proponents.scores.double(), direct.proponents.scores, rtol=1e-4, atol=1e-6
    )
    assert "explained: <lambda>, raised by proponents" in str(exact)


def test_data_sets_may_be_queries_of_a_target(run, train, queries):
    expected = run.influence(train, queries, target=tracin.LogitMargin())

    found = run.influence(train, TensorDataset(*queries), target=tracin.LogitMargin(), batch_size=4)

    torch.testing.assert_close(found, expected)


def test_a_target_that_needs_a_slower_method_leaves_the_loss_its_own(run, weights, train, queries):
    def slope(model: torch.nn.Module, batch: Any) -> Tensor:
        inputs = batch[0].detach().requires_grad_()
        (found,) = torch.autograd.grad(model(inputs)[:, 0].sum(), inputs, create_graph=True)
        return found.square().sum(1)

    matrix = run.influence(train, queries, target=slope)

    expected = slowly(weights, train, queries, slope)
    torch.testing.assert_close(matrix, expected, rtol=1e-9, atol=1e-12)
    assert "fast" not in {each.method.value for each in run.target_methods.values()}
    assert {each.method.value for each in run.methods.values()} == {"fast"}


def test_adam_multiplies_the_gradient_of_the_target(train, queries, tmp_path: Path):
    model = net(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with tracin.Recorder(model, optimizer, tmp_path / "run", every=5, optimizer_state=True):
        for _ in range(10):
            optimizer.zero_grad()
            F.cross_entropy(model(train[0]), train[1]).backward()
            optimizer.step()
    run = tracin.TracIn(net(0), "cross_entropy", tmp_path / "run", preconditioner=tracin.Adam())
    index = run.index(train, tmp_path / "index", tracin.Projection(dim=64), recall_queries=0)
    relabelled = queries[0], predicted(dict(model.state_dict()), queries[0])

    for scores in (lambda *a, **b: run.influence(train, *a, **b), index.influence):
        expected = scores(relabelled)
        torch.testing.assert_close(scores(queries, target=tracin.Predicted()), expected)


def coupled(model: torch.nn.Module, batch: Any) -> Tensor:
    output = model(batch[0])[:, 0]
    return output - output.mean()


REFUSED = {
    "a string": ("predicted", QueryError, r"target is None for .* 'predicted' was given"),
    "a class": (tracin.Predicted, QueryError, r"tracin.Predicted\(\), tracin.Logit\(\)"),
    "a layer": (torch.nn.CrossEntropyLoss(), QueryError, "returns one value per query"),
    "a class that is none": (tracin.Logit(-1), QueryError, "whole number from 0 on"),
    "a class too many": (tracin.Logit(3), QueryError, "the model scores 3 classes, from 0 to 2"),
    "all logits": (lambda m, b: m(b[0]), LossError, r"returned torch.float64 of shape \(\d, 3\)"),
    "whole numbers": (lambda m, b: m(b[0]).argmax(1), LossError, "returned torch.int64"),
    "no tensor": (lambda m, b: 1.0, LossError, "returned a float, but a tensor of one value"),
    "one for all": (
        lambda m, b: m(b[0]).sum()[None],
        LossError,
        r"target=<lambda>, whose negative",
    ),
    "detached": (lambda m, b: m(b[0])[:, 0].detach(), LossError, "<lambda>.* through autograd"),
    "coupled": (coupled, CoupledExamplesError, "target=coupled, whose negative"),
    "not finite": (
        lambda m, b: m(b[0])[:, 0] / (b[1] - b[1]),
        NonFiniteError,
        "The target of query 0 is",
    ),
}


@pytest.mark.parametrize("name", REFUSED, ids=REFUSED)
def test_what_is_no_target_is_refused(name, run, train, queries):
    target, kind, words = REFUSED[name]

    with pytest.raises(kind, match=words):
        run.explain(train, queries, k=1, target=target)


def test_the_loss_itself_is_no_target(weights, train, queries):
    def loss(model: torch.nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    run = tracin.TracIn(net(0), loss, weights, learning_rates="equal")

    with pytest.raises(QueryError, match="Leave target out to explain the loss"):
        run.influence(train, queries, target=loss)
    with pytest.raises(LossError, match=r"Predicted\(\) needs the model's score of each class"):
        run.influence(train, queries, target=tracin.Predicted())


def test_classes_per_position_need_a_function(weights):
    model = torch.nn.Conv1d(2, 3, 1)
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    data = torch.randn(6, 2, 5), torch.randint(3, (6, 5))

    with pytest.raises(LossError, match="scores classes per position"):
        run.influence(data, data, target=tracin.Predicted())
