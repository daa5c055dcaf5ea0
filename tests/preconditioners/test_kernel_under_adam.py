"""The kernel of gradients under Adam's factors, against matrices that are written out."""

import pytest
import torch

import tracin
from preconditioners.nets import EXAMPLES, QUERIES, data_for, nets
from preconditioners.test_adam import factors_of, state_of, trainable
from preconditioners.test_kernel import apart, in_both, metric_of, others, rows_of
from tracin.errors import CheckpointError, PreconditionerError

pytestmark = pytest.mark.usefixtures("float64")


def checkpoint_of(model, path, *, seed=0):
    """The weights, with moments of which some are zero."""
    state = state_of(trainable(model), seed)
    for kept in state.moments.values():
        kept["exp_avg_sq"].flatten()[0] = 0.0
    state.write(path)
    return tracin.Checkpoint(model.state_dict(), 0.1, optimizer_path=path), state


def run_of(model, path, kernel):
    checkpoint, state = checkpoint_of(model, path)
    run = tracin.TracIn(model, "cross_entropy", [checkpoint], preconditioner=kernel)
    factors = factors_of(state)
    for name, kept in state.moments.items():
        factors[name][kept["exp_avg_sq"] == 0] = 0.0
    return run, torch.cat([factors[name].flatten() for name in trainable(model)])


def scaled_rows_of(model, data, factors):
    return rows_of(model, data) * factors.sqrt()


@pytest.mark.parametrize("kind", nets())
def test_scores_are_those_of_the_kernel_of_scaled_gradients(kind, tmp_path):
    model, shape = nets()[kind]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    fit = data_for(shape, 11, seed=3)
    run, factors = run_of(model, tmp_path / "a", tracin.Kernel(0.1, fit=fit, under=tracin.Adam()))

    found = run.influence(train, queries)

    metric, _ = metric_of(scaled_rows_of(model, fit, factors), 0.1)
    rows, asked = (scaled_rows_of(model, each, factors) for each in (train, queries))
    torch.testing.assert_close(found, rows @ metric @ asked.T, rtol=1e-7, atol=1e-8)
    own = torch.linalg.vecdot(rows @ metric, rows)
    torch.testing.assert_close(run.self_influence(train), own, rtol=1e-7, atol=1e-8)
    top = run.explain(train, queries, k=3, group="sum")
    found = torch.tensor([each.score for each in top[0].proponents])
    expected = (rows @ metric @ asked.T).sum(1).topk(3).values
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_landmark_scores_under_the_curvature_of_the_others(tmp_path):
    model, shape = nets()["one position"]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    run, factors = run_of(model, tmp_path / "a", tracin.Kernel(0.5, under=tracin.Adam()))

    found, own = run.influence(train, queries), run.self_influence(train)

    rows, asked = (scaled_rows_of(model, each, factors) for each in (train, queries))
    _, amount = metric_of(rows, 0.5)
    for at in (0, EXAMPLES - 1):
        others = torch.cat([rows[:at], rows[at + 1 :]])
        fisher = others.T @ others / EXAMPLES
        metric = torch.linalg.inv(fisher + amount * torch.eye(rows.shape[1]))
        torch.testing.assert_close(found[at], asked @ metric @ rows[at], rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(own[at], rows[at] @ metric @ rows[at], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", ["one position", "several positions", "convolution"])
@pytest.mark.parametrize("is_fit", [False, True])
def test_what_is_a_landmark_has_the_scores_of_float64_in_float32(kind, is_fit, tmp_path):
    model, shape = nets()[kind]
    train = data_for(shape)
    path = tmp_path / "a"
    checkpoint_of(model, path)  # of which moments the run in float32 is not to differ

    def ask(model, cast):
        data = cast(train)
        kernel = tracin.Kernel(0.003, under=tracin.Adam(), fit=data if is_fit else None)
        checkpoint = tracin.Checkpoint(model.state_dict(), 0.1, optimizer_path=path)
        run = tracin.TracIn(model, "cross_entropy", [checkpoint], preconditioner=kernel)
        return others(run.influence(data, data, batch_size=7)), run.self_influence(data)

    (scores, own), (expected, expected_own) = in_both(model, ask)

    assert apart(scores, expected) < 2e-3
    assert apart(own, expected_own) < 2e-3


def test_moments_that_another_training_left_are_read_anew(tmp_path):
    model, shape = nets()["one position"]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    path = tmp_path / "a"
    run, _ = run_of(model, path, tracin.Kernel(under=tracin.Adam()))
    before = run.influence(train, queries)

    checkpoint, _ = checkpoint_of(model, path, seed=5)

    fresh = tracin.TracIn(
        model, "cross_entropy", [checkpoint], preconditioner=tracin.Kernel(under=tracin.Adam())
    )
    expected = fresh.influence(train, queries)
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(run.influence(train, queries), expected)


def test_it_needs_moments_and_takes_no_other():
    model, _ = nets()["one position"]
    kernel = tracin.Kernel(under=tracin.Adam())
    with pytest.raises(CheckpointError, match="needs the moments"):
        tracin.TracIn(model, "cross_entropy", [model.state_dict()], preconditioner=kernel)
    with pytest.raises(PreconditionerError, match=r"under is tracin\.Adam\(\).*KFAC was given"):
        tracin.Kernel(under=tracin.KFAC())  # pyright: ignore[reportArgumentType]
