"""K-FAC on the query, against curvature that is written out in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracin
from preconditioners.nets import (
    CLASSES,
    EXAMPLES,
    QUERIES,
    data_for,
    deltas_of,
    gradients_of,
    inputs_of,
    inverse,
    nets,
    patches_of,
)
from tracin.errors import PreconditionerError
from tracin.preconditioners.fit_data import spread_evenly

pytestmark = pytest.mark.usefixtures("float64")


def run_of(model, damping=0.3, **options):
    return tracin.TracIn(
        model,
        "cross_entropy",
        [model.state_dict()],
        preconditioner=tracin.KFAC(damping=damping, **options),
    )


def curvature(rows, deltas, examples, damping):
    """The inverses of both sides: deltas are [positions, out], rows [positions, in]."""
    return (
        inverse(deltas.T @ deltas / examples, damping),
        inverse(rows.T @ rows / len(rows), damping),
    )


def written_out(model, train, queries, damping):
    """The same scores, with each layer's curvature as two matrices: [train, queries]."""
    own, asked = gradients_of(model, *train), gradients_of(model, *queries)
    scores = torch.zeros(len(train[1]), len(queries[1]))
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        rows, deltas = inputs_of(model, layer, train[0]), deltas_of(model, layer, *train)
        groups = 1
        if isinstance(layer, nn.Conv2d):
            groups = layer.groups
            rows = patches_of(layer, rows)
            deltas = deltas.flatten(2).unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
        else:
            rows, deltas = (each.reshape(1, -1, each.shape[-1]) for each in (rows, deltas))
        if layer.bias is not None:
            rows = torch.cat([rows, torch.ones(*rows.shape[:2], 1)], 2)

        def matrices(gradients, name=name, groups=groups, layer=layer):
            weight = gradients[f"{name}.weight"].flatten(2).unflatten(1, (groups, -1))
            if layer.bias is None:
                return weight
            return torch.cat([weight, gradients[f"{name}.bias"].view(*weight.shape[:3], 1)], 3)

        for group in range(groups):
            left, right = curvature(rows[group], deltas[group], len(train[1]), damping)
            scaled = left @ matrices(asked)[:, group] @ right
            scores += matrices(own)[:, group].flatten(1) @ scaled.flatten(1).T
    return scores


@pytest.mark.parametrize("kind", nets())
@pytest.mark.parametrize("damping", [0.1, 1.0])
def test_scores_are_those_of_matrices_that_are_written_out(kind, damping):
    model, shape = nets()[kind]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)

    found = run_of(model, damping).influence(train, queries)

    torch.testing.assert_close(
        found, written_out(model, train, queries, damping), rtol=1e-9, atol=1e-9
    )


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
            run.influence(train, queries, batch_size=size), whole, rtol=1e-9, atol=1e-9
        )
    moved = run.influence((train[0][order], train[1][order]), queries)
    torch.testing.assert_close(moved, whole[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", nets())
def test_a_sum_of_queries_is_the_sum_of_their_scores(kind):
    model, shape = nets()[kind]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    run = run_of(model)

    top = run.explain(train, queries, k=3, group="sum")

    expected = run.influence(train, queries).sum(1)
    found = torch.tensor([each.score for each in top[0].proponents])
    torch.testing.assert_close(found, expected.topk(3).values, rtol=1e-6, atol=1e-6)


def test_much_damping_gives_tracin_with_one_factor_per_layer():
    model = nets()["one position"][0][2:]
    train, queries = data_for((5,)), data_for((5,), QUERIES, seed=2)
    plain = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])

    found = run_of(model, 1e9).influence(train, queries)

    ratio = found / plain.influence(train, queries)
    torch.testing.assert_close(ratio / ratio[0, 0], torch.ones_like(ratio), rtol=1e-6, atol=0)


def test_without_damping_mixed_inputs_change_nothing():
    torch.manual_seed(0)
    model, mixing = nn.Sequential(nn.Linear(4, CLASSES)), torch.randn(4, 4)
    other = nn.Sequential(nn.Linear(4, CLASSES))
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight @ torch.linalg.inv(mixing))
        other[0].bias.copy_(model[0].bias)
    # Output gradients of all classes add up to zero, and have no inverse: one output is asked for.
    train, queries = data_for((4,)), data_for((4,), QUERIES, seed=2)
    mixed = [(x @ mixing.T, y) for x, y in (train, queries)]

    def loss(model, batch):
        return F.mse_loss(model(batch[0])[:, :1], batch[1][:, None].double(), reduction="none")[
            :, 0
        ]

    scores = []
    for net, (own, asked) in ((model, (train, queries)), (other, mixed)):
        narrow = nn.Sequential(nn.Linear(4, 1))
        with torch.no_grad():
            narrow[0].weight.copy_(net[0].weight[:1])
            narrow[0].bias.copy_(net[0].bias[:1])
        run = tracin.TracIn(
            narrow, loss, [narrow.state_dict()], preconditioner=tracin.KFAC(damping=0.0)
        )
        scores.append(run.influence(own, asked))

    torch.testing.assert_close(*scores, rtol=1e-7, atol=1e-9)


def test_of_linear_regression_scores_are_proportional_to_exact_influence():
    torch.manual_seed(0)
    x, y = torch.randn(40, 3), torch.randn(40)
    inputs = torch.cat([x, torch.ones(40, 1)], 1)
    solution = torch.linalg.lstsq(inputs, y[:, None]).solution[:, 0]
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(solution[:3])
        model.bias.copy_(solution[3:])
    run = tracin.TracIn(model, "mse", [model.state_dict()], preconditioner=tracin.KFAC(damping=0.0))

    found = run.influence((x, y), (x[:5], y[:5]))

    residuals = inputs @ solution - y
    exact = inputs @ torch.linalg.inv(inputs.T @ inputs) @ inputs[:5].T
    exact = residuals[:, None] * exact * residuals[:5]
    ratio = found / exact
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-7, atol=0)


def test_rows_of_an_embedding_are_divided_by_how_often_they_are_looked_up():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(6, CLASSES))
    words = torch.randint(6, (EXAMPLES, 2))
    labels = torch.arange(EXAMPLES) % CLASSES
    asked = torch.tensor([[1, 1], [2, 3]]), torch.tensor([0, 1])
    only = {"parameters": ["0.weight"]}
    run = tracin.TracIn(
        model,
        "cross_entropy",
        [model.state_dict()],
        preconditioner=tracin.KFAC(damping=0.3),
        **only,
    )

    found = run.influence((words, labels), asked)

    deltas = deltas_of(model, model[0], words, labels).flatten(0, 1)
    share = torch.bincount(words.flatten(), minlength=6) / words.numel()
    rows = torch.diag(1 / (share + 0.3 * share.mean()))
    right = inverse(deltas.T @ deltas / EXAMPLES, 0.3)

    def tables(x, y):
        deltas = deltas_of(model, model[0], x, y)
        out = torch.zeros(len(x), 6, 3)
        return out.scatter_add_(1, x.unsqueeze(2).expand(-1, -1, 3), deltas)

    expected = tables(words, labels).flatten(1) @ (rows @ tables(*asked) @ right).flatten(1).T
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    own = run.influence((words, labels), (words, labels)).diagonal()
    torch.testing.assert_close(run.self_influence((words, labels)), own, rtol=1e-9, atol=1e-9)


def test_padding_does_not_count():
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES)

    def loss(model, batch):
        x, real, y = batch
        logits = (model(x) * real.unsqueeze(2)).sum(1)
        return F.cross_entropy(logits, y, reduction="none")

    x, y = torch.randn(EXAMPLES, 5, 4), torch.arange(EXAMPLES) % CLASSES
    real = (torch.arange(5) < torch.randint(2, 6, (EXAMPLES, 1))).double()
    longer = (
        torch.cat([x, torch.randn(EXAMPLES, 3, 4)], 1),
        torch.cat([real, torch.zeros(EXAMPLES, 3)], 1),
    )
    run = tracin.TracIn(model, loss, [model.state_dict()], preconditioner=tracin.KFAC())

    torch.testing.assert_close(
        run.self_influence((x, real, y)), run.self_influence((*longer, y)), rtol=1e-9, atol=1e-12
    )


def test_saturated_layers_and_parameters_without_sides_stay_finite():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.LayerNorm(5), nn.PReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    with torch.no_grad():
        model[3].bias.fill_(-1e6)  # ReLU is never passed: the layers before it get no gradient
    train = data_for((4,))

    scores = run_of(model).influence(train, train)

    assert torch.isfinite(scores).all()
    assert scores.abs().max() > 0


def test_one_fit_serves_all_checkpoints_or_each_has_its_own():
    torch.manual_seed(0)
    model = nets()["one position"][0]
    states = []
    for _ in range(2):
        states.append({name: torch.randn_like(one) for name, one in model.state_dict().items()})
    train, queries = data_for((4,)), data_for((4,), QUERIES, seed=2)

    def scores(states, at):
        run = tracin.TracIn(model, "cross_entropy", states, preconditioner=tracin.KFAC(at=at))
        return run.influence(train, queries)

    apart = scores(states[:1], "each") + scores(states[1:], "each")
    torch.testing.assert_close(scores(states, "each"), apart)
    assert not torch.allclose(scores(states, "last"), apart)
    torch.testing.assert_close(scores(states[1:], "last"), scores(states[1:], "each"))


def test_curvature_may_come_from_other_data_or_from_some():
    model, shape = nets()["one position"]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    rows = spread_evenly(EXAMPLES, 10, 4)
    some = train[0][rows], train[1][rows]

    fitted = run_of(model, fit=some).influence(train, queries)
    chosen = run_of(model, examples=10).influence(train, queries)

    torch.testing.assert_close(fitted, chosen)
    assert not torch.allclose(fitted, run_of(model).influence(train, queries))


@pytest.mark.parametrize(("total", "count"), [(8000, 2000), (7, 3), (5, 5), (1, 1), (10, 9)])
def test_the_examples_of_curvature_are_spread_and_the_same_each_time(total, count):
    found = spread_evenly(total, count, 1)

    assert found == spread_evenly(total, count, 1)
    for at, position in enumerate(found):
        assert at * total // count <= position < (at + 1) * total // count


def test_curvature_of_some_examples_is_that_of_all_where_labels_alternate():
    torch.manual_seed(0)
    labels = torch.arange(1200) % CLASSES
    inputs = torch.randn(1200, 4) + 3 * torch.eye(4)[labels]
    model, queries = nn.Linear(4, CLASSES), (inputs[:4], labels[:4])
    whole = run_of(model, examples=1200).influence((inputs, labels), queries)

    part = run_of(model, examples=1200 // CLASSES).influence((inputs, labels), queries)

    # Every third example is of one class: with these alone the scores differed by 60 %.
    assert float((part - whole).abs().max()) < 0.2 * float(whole.abs().max())


def test_damping_that_leaves_nothing_of_curvature_is_refused():
    with pytest.raises(PreconditionerError, match=r"1e\+12 at most.*0\.3 suits"):
        tracin.KFAC(damping=1e25)


def test_checkpoints_weigh_the_same_unless_rates_are_given():
    model, _ = nets()["one position"]
    checkpoints = [
        tracin.Checkpoint({n: one + k for n, one in model.state_dict().items()}, 0.01 * (k + 1))
        for k in range(2)
    ]
    kfac = tracin.KFAC()
    assert tracin.TracIn(model, "cross_entropy", checkpoints, preconditioner=kfac).weights == [1, 1]
    given = tracin.TracIn(
        model, "cross_entropy", checkpoints, preconditioner=kfac, learning_rates=[3.0, 4.0]
    )
    assert given.weights == [3, 4]


@pytest.mark.parametrize("damping", [-1, float("nan"), float("inf"), "0.3", True])
def test_damping_that_makes_no_sense_is_refused(damping):
    with pytest.raises(PreconditionerError, match=r"damping is a number from 0 on"):
        tracin.KFAC(damping=damping)


def test_other_arguments_that_make_no_sense_are_refused():
    with pytest.raises(PreconditionerError, match=r'"each" or "last"; .first. was given'):
        tracin.KFAC(at="first")
    with pytest.raises(PreconditionerError, match="examples"):
        tracin.KFAC(examples=0)


def test_singular_curvature_without_damping_is_said():
    model, shape = nets()["one position"]
    with pytest.raises(PreconditionerError, match=r"'2\.weight'.* is singular.*damping=0\.3"):
        run_of(model, 0).influence(data_for(shape), data_for(shape, QUERIES))
