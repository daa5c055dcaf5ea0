"""EK-FAC on the query, against curvature that is written out in float64."""

import pytest
import torch
from torch import nn

import tracin
from preconditioners.nets import (
    CLASSES,
    EXAMPLES,
    QUERIES,
    data_for,
    deltas_of,
    gradients_of,
    inputs_of,
    nets,
    patches_of,
)
from tracin.errors import PreconditionerError

pytestmark = pytest.mark.usefixtures("float64")


def run_of(model, damping=1.0, **options):
    return tracin.TracIn(
        model,
        "cross_entropy",
        [model.state_dict()],
        preconditioner=tracin.EKFAC(damping=damping, **options),
    )


def matrices_of(model, name, layer, data):
    """A layer's gradients, the bias as one more column: [examples, groups, out, in]."""
    gradients = gradients_of(model, *data)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = gradients[f"{name}.weight"].flatten(2).unflatten(1, (groups, -1))
    if layer.bias is None:
        return weight
    return torch.cat([weight, gradients[f"{name}.bias"].view(*weight.shape[:3], 1)], 3)


def bases_of(model, layer, data):
    """The eigenvectors of both sides: [groups, out, out] and [groups, in, in]."""
    rows, deltas = inputs_of(model, layer, data[0]), deltas_of(model, layer, *data)
    if isinstance(layer, nn.Conv2d):
        rows = patches_of(layer, rows)
        deltas = deltas.flatten(2).unflatten(1, (layer.groups, -1))
        deltas = deltas.permute(1, 0, 3, 2).flatten(1, 2)
    else:
        rows, deltas = (each.reshape(1, -1, each.shape[-1]) for each in (rows, deltas))
    if layer.bias is not None:
        rows = torch.cat([rows, torch.ones(*rows.shape[:2], 1)], 2)
    return (torch.linalg.eigh(each.mT @ each).eigenvectors for each in (deltas, rows))


def written_out(model, train, queries, damping):
    """The same scores, with each layer's curvature written out: [train, queries]."""
    scores = torch.zeros(len(train[1]), len(queries[1]))
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        left, right = bases_of(model, layer, train)
        own, asked = (
            left.mT @ matrices_of(model, name, layer, data) @ right for data in (train, queries)
        )
        values = own.square().mean(0)
        values = values + damping * values.mean((1, 2), keepdim=True)
        scores += own.flatten(1) @ (asked / values).flatten(1).T
    return scores


@pytest.mark.parametrize("kind", nets())
@pytest.mark.parametrize("damping", [0.1, 1.0])
def test_scores_are_those_of_matrices_that_are_written_out(kind, damping):
    model, shape = nets()[kind]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)

    found = run_of(model, damping).influence(train, queries)

    # Output gradients add up to zero over classes: eigenvectors of equal eigenvalues may differ,
    # but here only one is zero.
    expected = written_out(model, train, queries, damping)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", nets())
def test_self_influence_is_the_diagonal_and_no_direction_is_negative(kind):
    model, shape = nets()[kind]
    train = data_for(shape)
    run = run_of(model)

    scores = run.influence(train, train)

    torch.testing.assert_close(scores, scores.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run.self_influence(train), scores.diagonal(), rtol=1e-9, atol=1e-9)
    assert torch.linalg.eigvalsh((scores + scores.T) / 2).min() > -1e-9 * scores.max()


@pytest.mark.parametrize("kind", nets())
def test_batches_and_order_do_not_matter(kind):
    model, shape = nets()[kind]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    run, order = run_of(model), torch.randperm(EXAMPLES)
    whole = run.influence(train, queries)

    for size in (1, 7):
        torch.testing.assert_close(
            run.influence(train, queries, batch_size=size), whole, rtol=1e-7, atol=1e-7
        )
    moved = run.influence((train[0][order], train[1][order]), queries)
    torch.testing.assert_close(moved, whole[order], rtol=1e-7, atol=1e-7)


def test_a_sum_of_queries_is_the_sum_of_their_scores():
    model, shape = nets()["several positions"]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    run = run_of(model)

    top = run.explain(train, queries, k=3, group="sum")

    expected = run.influence(train, queries).sum(1).topk(3).values
    found = torch.tensor([each.score for each in top[0].proponents])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_saturated_layers_embeddings_and_parameters_without_sides_stay_finite():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(6, 4),
        nn.Flatten(),
        nn.Linear(8, 5),
        nn.LayerNorm(5),
        nn.Linear(5, 5),
        nn.ReLU(),
        nn.Linear(5, CLASSES),
    )
    with torch.no_grad():
        model.get_submodule("4").bias.fill_(-1e6)  # ReLU is never passed
    train = torch.randint(6, (EXAMPLES, 2)), torch.arange(EXAMPLES) % CLASSES
    run = run_of(model)

    scores = run.influence(train, train)

    assert torch.isfinite(scores).all()
    assert scores.abs().max() > 0
    torch.testing.assert_close(run.self_influence(train), scores.diagonal(), rtol=1e-7, atol=1e-9)


def test_a_layer_with_one_eigenvalue_counts_as_one_without_sides():
    """Layers share one unit: what has no sides is divided by its mean square, damped alike."""
    torch.manual_seed(0)
    scale = nn.Parameter(torch.randn(1))

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return x * self.scale

    model = Scaled()
    train = torch.randn(EXAMPLES, 1), torch.randn(EXAMPLES)
    run = tracin.TracIn(
        model, "mse", [model.state_dict()], preconditioner=tracin.EKFAC(damping=0.5)
    )
    plain = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates=[1.0])

    own = plain.self_influence(train)

    torch.testing.assert_close(run.self_influence(train), own / (1.5 * own.mean()))


def test_one_fit_serves_all_checkpoints_or_each_has_its_own():
    torch.manual_seed(0)
    model = nets()["one position"][0]
    states = [{n: torch.randn_like(one) for n, one in model.state_dict().items()} for _ in range(2)]
    train, queries = data_for((4,)), data_for((4,), QUERIES, seed=2)

    def scores(states, at):
        run = tracin.TracIn(model, "cross_entropy", states, preconditioner=tracin.EKFAC(at=at))
        return run.influence(train, queries)

    apart = scores(states[:1], "each") + scores(states[1:], "each")
    torch.testing.assert_close(scores(states, "each"), apart)
    assert not torch.allclose(scores(states, "last"), apart)


@pytest.mark.parametrize("damping", [-1, float("nan"), float("inf"), "0.3", True])
def test_damping_that_makes_no_sense_is_refused(damping):
    with pytest.raises(PreconditionerError, match=r"damping is a number from 0 on.*1\.0 suits"):
        tracin.EKFAC(damping=damping)


def test_an_eigenvalue_of_zero_without_damping_is_said():
    model = nn.Linear(4, CLASSES)
    x, y = data_for((4,))
    with pytest.raises(PreconditionerError, match=r"'weight'.* is zero.*damping=1\.0"):
        run_of(model, 0).influence((0 * x, y), (x[:3], y[:3]))
