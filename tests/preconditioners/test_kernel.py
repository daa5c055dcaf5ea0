"""The kernel of the empirical Fisher, against a matrix that is written out in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracin
from preconditioners.nets import CLASSES, EXAMPLES, QUERIES, data_for, gradients_of, nets
from tracin.errors import PreconditionerError
from tracin.preconditioners.kernel import KernelInverse, LandmarkMetric
from tracin.preconditioners.landmarks import Landmarks
from tracin.preconditioners.recognised import Recognised

pytestmark = pytest.mark.usefixtures("float64")


def run_of(model, kernel, **options):
    return tracin.TracIn(
        model, "cross_entropy", [model.state_dict()], preconditioner=kernel, **options
    )


def rows_of(model, data):
    """Whole gradients: [examples, numbers]."""
    return torch.cat([one.flatten(1) for one in gradients_of(model, *data).values()], 1)


def metric_of(rows, damping):
    """(F + lambda I)^-1, written out, and lambda."""
    gram = rows @ rows.T
    off = gram - torch.diag(gram.diagonal())
    amount = damping * off.square().sum() / gram.trace() / (len(rows) - 1)
    fisher = rows.T @ rows / len(rows)
    return torch.linalg.inv(fisher + amount * torch.eye(rows.shape[1])), amount


@pytest.mark.parametrize("kind", nets())
@pytest.mark.parametrize("damping", [0.1, 3.0])
def test_scores_are_those_of_a_matrix_that_is_written_out(kind, damping):
    model, shape = nets()[kind]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    fit = data_for(shape, 11, seed=3)

    found = run_of(model, tracin.Kernel(damping, fit=fit)).influence(train, queries)

    metric, _ = metric_of(rows_of(model, fit), damping)
    expected = rows_of(model, train) @ metric @ rows_of(model, queries).T
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", nets())
def test_a_landmark_scores_under_the_curvature_of_the_others(kind):
    model, shape = nets()[kind]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    run = run_of(model, tracin.Kernel(0.5))

    found, own = run.influence(train, queries), run.self_influence(train)

    rows, asked = rows_of(model, train), rows_of(model, queries)
    _, amount = metric_of(rows, 0.5)
    for at in (0, 7, EXAMPLES - 1):
        others = torch.cat([rows[:at], rows[at + 1 :]])
        fisher = others.T @ others / EXAMPLES
        metric = torch.linalg.inv(fisher + amount * torch.eye(rows.shape[1]))
        torch.testing.assert_close(found[at], asked @ metric @ rows[at], rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(own[at], rows[at] @ metric @ rows[at], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", nets())
def test_self_influence_is_the_diagonal_and_no_direction_is_negative(kind):
    model, shape = nets()[kind]
    train = data_for(shape)
    run = run_of(model, tracin.Kernel(fit=data_for(shape, 12, seed=3)))

    scores = run.influence(train, train)

    torch.testing.assert_close(scores, scores.T, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(run.self_influence(train), scores.diagonal(), rtol=1e-7, atol=1e-7)
    assert torch.linalg.eigvalsh((scores + scores.T) / 2).min() > -1e-9 * scores.max()
    chosen = run_of(model, tracin.Kernel(landmarks=10))
    own = chosen.influence(train, train).diagonal()
    torch.testing.assert_close(chosen.self_influence(train), own, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", nets())
def test_batches_and_order_do_not_matter(kind):
    model, shape = nets()[kind]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    run, order = run_of(model, tracin.Kernel()), torch.randperm(EXAMPLES)
    whole = run.influence(train, queries)

    for size in (1, 7):
        torch.testing.assert_close(
            run.influence(train, queries, batch_size=size), whole, rtol=1e-7, atol=1e-7
        )
    moved = run.influence((train[0][order], train[1][order]), queries)
    torch.testing.assert_close(moved, whole[order], rtol=1e-7, atol=1e-7)


def test_a_sum_of_queries_is_the_sum_of_their_scores_and_cosines_stay_within_one():
    model, shape = nets()["one position"]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    run = run_of(model, tracin.Kernel(fit=data_for(shape, 12, seed=3)))
    scores = run.influence(train, queries)

    top = run.explain(train, queries, k=3, group="sum")
    cosine = run.explain(train, queries, k=3, normalise="cosine")

    found = torch.tensor([each.score for each in top[0].proponents])
    torch.testing.assert_close(found, scores.sum(1).topk(3).values, rtol=1e-6, atol=1e-6)
    lengths = run.self_influence(train)[:, None] * run.self_influence(queries)
    expected = (scores / lengths.sqrt()).topk(3, 0).values
    for at in range(QUERIES):
        found = torch.tensor([each.score for each in cosine[at].proponents])
        torch.testing.assert_close(found, expected[:, at], rtol=1e-6, atol=1e-6)
        assert found.abs().max() <= 1 + 1e-9


def test_any_layer_and_loss_will_do():
    torch.manual_seed(0)

    class Odd(nn.Module):
        """A weight that meets data in a way that no rule reads."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, CLASSES))

        def forward(self, x):
            return torch.einsum("ni,ij,nk->nj", x, self.weight.sin(), x)

    model = Odd()

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none") ** 2

    train, queries = data_for((4,)), data_for((4,), 2, seed=2)
    run = tracin.TracIn(model, loss, [model.state_dict()], preconditioner=tracin.Kernel(0.5))

    def rows(data):
        found = []
        for x, y in zip(*data, strict=True):
            value = loss(model, (x[None], y[None])).sum()
            found.append(torch.autograd.grad(value, model.weight)[0].flatten())
        return torch.stack(found)

    _, amount = metric_of(rows(train), 0.5)
    others = rows(train)[1:]
    metric = torch.linalg.inv(others.T @ others / EXAMPLES + amount * torch.eye(12))
    expected = rows(queries) @ metric @ rows(train)[0]
    torch.testing.assert_close(run.influence(train, queries)[0], expected, rtol=1e-7, atol=1e-8)


def test_the_landmarks_follow_the_seed():
    model, shape = nets()["one position"]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)

    def scores(seed):
        return run_of(model, tracin.Kernel(landmarks=9, seed=seed)).influence(train, queries)

    torch.testing.assert_close(scores(1), scores(1))
    assert not torch.allclose(scores(1), scores(2))


def test_weights_multiply_and_differing_ones_are_refused():
    model, shape = nets()["one position"]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    once = run_of(model, tracin.Kernel())
    twice = run_of(model, tracin.Kernel(), learning_rates=[2.0])

    torch.testing.assert_close(
        twice.influence(train, queries), 2 * once.influence(train, queries), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(twice.self_influence(train), 2 * once.self_influence(train))
    rates = {name: 0.1 + at for at, name in enumerate(model.state_dict())}
    checkpoint = tracin.Checkpoint(model.state_dict(), rates)
    apart = tracin.TracIn(
        model, "cross_entropy", [checkpoint], preconditioner=tracin.Kernel(), learning_rates=[rates]
    )
    with pytest.raises(PreconditionerError, match=r"one weight.*learning_rates=.equal."):
        apart.influence(train, queries)


@pytest.mark.parametrize("damping", [0, -1, float("nan"), float("inf"), "0.3", True])
def test_damping_that_makes_no_sense_is_refused(damping):
    with pytest.raises(PreconditionerError, match=r"damping is a number above 0"):
        tracin.Kernel(damping)


def test_other_arguments_that_make_no_sense_are_refused():
    with pytest.raises(PreconditionerError, match="landmarks"):
        tracin.Kernel(landmarks=0)
    with pytest.raises(PreconditionerError, match="seed is a whole number"):
        tracin.Kernel(seed=-1)


def test_gradients_that_are_all_zero_are_said():
    model = nn.Linear(4, CLASSES)

    def loss(model, batch):
        return (0 * model(batch[0])).sum(1)

    run = tracin.TracIn(model, loss, [model.state_dict()], preconditioner=tracin.Kernel())
    with pytest.raises(PreconditionerError, match=r"are all zero.*no curvature"):
        run.self_influence(data_for((4,)))


def test_landmarks_that_do_not_fit_are_refused(monkeypatch):
    model, shape = nets()["one position"]
    monkeypatch.setattr("tracin.preconditioners.landmarks.MOST", 100)
    with pytest.raises(PreconditionerError, match=r"landmarks take .* at most 100 .*Use fewer"):
        run_of(model, tracin.Kernel()).self_influence(data_for(shape))


def test_labels_are_not_judged_under_it():
    model, shape = nets()["one position"]
    with pytest.raises(PreconditionerError, match=r"mixes all parameters.*find_mislabelled"):
        run_of(model, tracin.Kernel()).find_mislabelled(data_for(shape))


def single(data):
    return data[0].float(), data[1]


def in_both(model, ask):
    """What `ask` gives of a model in float32, and of the same in float64."""
    rounded = copy.deepcopy(model).float()
    finest = copy.deepcopy(rounded).double()
    return ask(rounded, single), ask(finest, lambda data: (single(data)[0].double(), data[1]))


def apart(found, expected):
    """The largest difference of a column, in units of its largest number."""
    expected = expected.reshape(len(expected), -1)
    gaps = (found.reshape(expected.shape).to(expected) - expected).abs()
    return float((gaps.amax(0) / expected.abs().amax(0)).max())


def others(scores):
    """Without those of an example with itself."""
    return scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), 0)


@pytest.mark.parametrize("kind", nets())
@pytest.mark.parametrize("chosen", ["all", "some", "fit"])
def test_what_is_a_landmark_has_the_scores_of_float64_in_float32(kind, chosen):
    model, shape = nets()[kind]
    train = data_for(shape)

    def ask(model, cast):
        data = cast(train)
        options = {"some": {"landmarks": 20}, "fit": {"fit": cast(train)}}.get(chosen, {})
        run = run_of(model, tracin.Kernel(0.003, **options))
        scores = run.influence(data, data, batch_size=7)
        # The queries' batches are of another size than the landmarks', so that sums are, too.
        few = run.influence(data, tuple(each[:3] for each in data), batch_size=1)
        return others(scores), few, run.self_influence(data)

    (scores, few, own), (expected, expected_few, expected_own) = in_both(model, ask)

    # Rounding of the gradients themselves, times the condition of the kernel, is left.
    assert apart(scores, expected) < 2e-3
    assert apart(few[3:], expected_few[3:]) < 2e-3
    assert apart(own, expected_own) < 2e-3


@pytest.mark.parametrize("size", [1e-3, 1e-2])
def test_what_is_nearly_a_landmark_is_none(size):
    model, shape = nets()["one position"]
    x, y = data_for(shape)
    nearly = (x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(5)), y)

    def ask(model, cast):
        return others(run_of(model, tracin.Kernel()).influence(cast((x, y)), cast(nearly)))

    found, expected = in_both(model, ask)

    _, of_landmarks = in_both(model, lambda model, cast: ask(model, lambda _: cast((x, y))))
    assert apart(found, expected) < min(1e-2, 0.1 * apart(of_landmarks, expected))


def test_a_query_that_no_landmark_tells_from_a_landmark_is_none():
    torch.manual_seed(0)
    model = nn.Linear(5, CLASSES)
    with torch.no_grad():
        model.weight[:, 4] = 0  # of a feature that no landmark has
    x, y = data_for((5,))
    x[:, 4] = 0
    new = x.clone()
    new[:, 4] = 0.01

    def ask(model, cast):
        run = run_of(model, tracin.Kernel(fit=cast((x, y))))
        return run.influence(cast((new, y)), cast((new, y)))

    found, expected = in_both(model, ask)

    assert apart(found, expected) < 2e-3
    _, of_landmarks = in_both(model, lambda model, cast: ask(model, lambda _: cast((x, y))))
    assert apart(found, expected) < 0.1 * apart(of_landmarks, expected)


@pytest.mark.parametrize("known", [QUERIES, 2])
def test_sums_and_cosines_of_landmarks_have_the_scores_of_float64(known):
    model, shape = nets()["several positions"]
    train, new = data_for(shape), data_for(shape, QUERIES, seed=2)
    queries = tuple(
        torch.cat([one[:known], other[known:]]) for one, other in zip(train, new, strict=True)
    )

    def ask(model, cast):
        run = run_of(model, tracin.Kernel())
        data = cast(train)
        together = run.explain(data, cast(queries), k=EXAMPLES, group="sum")
        cosines = run.explain(data, cast(queries), k=EXAMPLES, normalise="cosine")
        return [
            torch.tensor([one.score for one in sorted(each.proponents, key=lambda one: one.id)])
            for each in (together[0], *cosines)
        ]

    for found, expected in zip(*in_both(model, ask), strict=True):
        assert apart(found, expected) < 2e-3


@pytest.mark.parametrize("size", [1e-3, 1e-7])
def test_landmarks_of_short_gradients_have_scores_as_precise_as_others(size):
    model, shape = nets()["one position"]
    x, y = data_for(shape)
    amounts = torch.where(torch.arange(len(y)) % 3 == 0, size, 1.0)
    data = x, y, amounts

    def loss(model, batch):
        return batch[2] * F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    kernel = tracin.Kernel(0.1, fit=data)
    run = tracin.TracIn(model, loss, [model.state_dict()], preconditioner=kernel)
    found, own = run.influence(data, data), run.self_influence(data)
    top = run.explain(data, data, k=EXAMPLES, group="sum")[0].proponents

    rows = rows_of(model, (x, y)) * amounts.unsqueeze(1)
    metric, _ = metric_of(rows, 0.1)
    expected = rows @ metric @ rows.T
    # In units of both lengths, in which no score is small for its gradients.
    lengths = expected.diagonal().sqrt()
    torch.testing.assert_close(
        found / lengths / lengths[:, None], expected / lengths / lengths[:, None]
    )
    torch.testing.assert_close(own / lengths.square(), torch.ones(EXAMPLES))
    total = torch.tensor([one.score for one in sorted(top, key=lambda one: one.id)])
    torch.testing.assert_close(total / lengths, expected.sum(1) / lengths)


def test_what_is_drawn_anew_in_a_landmark_s_place_is_none():
    gram, damping = torch.tensor([[4.0, 0.0], [0.0, 1.0]]), 0.5
    inverse = torch.linalg.inv(gram + 2 * damping * torch.eye(2))
    probed = torch.tensor([[2.0], [1.0]])
    recognised = Recognised(probed, gram.diagonal().sqrt(), 1e-6)
    kernel = KernelInverse(Landmarks(), inverse, 2 * gram @ inverse, damping, recognised)
    metric = LandmarkMetric(kernel, {7: 0})
    solved = metric.solved(torch.tensor([[1.0, 0.0, 3.0]]), together=False)
    drawn, same = torch.tensor([[0.5, 0.3, 1.0]]), torch.cat([gram[:1], probed[:1]], 1)

    def scores(own, position):
        plain = torch.tensor([[0.4]])
        found = metric.scores(plain, own, solved, [position])
        return torch.stack([found[0], metric.squared_norms(plain[0], own, [position])])

    assert torch.equal(scores(drawn, 7), scores(drawn, 8))
    torch.testing.assert_close(scores(same, 7), scores(same, 8) / (2 * damping * inverse[0, 0]))


def test_two_passes_say_how_far_a_landmark_may_be_from_itself():
    lengths, products = torch.tensor([2.0, 1.0]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    which = torch.tensor([0])

    found = Recognised.by(products, lengths, products[:1] + 0.001, which)

    assert found.limit == pytest.approx(0.002)
    asked = torch.tensor([[2.003, 0.0], [0.0, 1.003], [0.0, 1.001], [2.0, 0.005]])
    assert found.landmarks(asked).tolist() == [0, -1, 1, -1]
    exact = Recognised.by(products, lengths, products[:1], which)
    assert exact.limit == 8 * torch.finfo(products.dtype).eps
    # Data that draw random numbers have no example twice.
    assert Recognised.by(products, lengths, products[:1] + 0.5, which).limit == exact.limit
