"""Curvature is computed once for the same data, weights and methods, and anew for any other."""

import pickle

import pytest
import torch

import tracin
from preconditioners.nets import QUERIES, data_for, nets
from tracin.preconditioners import KeptMetrics

pytestmark = pytest.mark.usefixtures("float64")
SIBLINGS = {"KFAC": tracin.KFAC, "EKFAC": tracin.EKFAC}


@pytest.fixture(params=SIBLINGS)
def preconditioner(request):
    return SIBLINGS[request.param]


def run_of(model, preconditioner, states=None):
    states = [model.state_dict()] if states is None else states
    return tracin.TracIn(model, "cross_entropy", states, preconditioner=preconditioner())


def test_landmarks_serve_the_next_question_wherever_they_lie(monkeypatch):
    from tracin.preconditioners import kernel

    made, own = [], kernel.Landmarks
    monkeypatch.setattr(kernel, "Landmarks", lambda scaling: made.append(1) or own(scaling))
    model, shape = nets()["one position"]
    (x, y), queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    run = run_of(model, lambda: tracin.Kernel(0.1))

    first = run.influence((x, y), queries)
    again = run.influence((x, y), queries)

    assert len(made) == 1
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    moved = x.flip(0), y.flip(0)
    torch.testing.assert_close(run.influence(moved, queries), first.flip(0))


def test_landmarks_of_another_place_in_the_data_keep_their_shares():
    model, shape = nets()["one position"]
    (x, y), queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    # All are alike, but of more examples others are chosen.
    x, y = x[:1].expand(30, *shape), y[:1].expand(30)
    more = x[:1].expand(40, *shape), y[:1].expand(40)
    run, fresh = (
        tracin.TracIn(
            model,
            "cross_entropy",
            [model.state_dict()],
            preconditioner=tracin.Kernel(0.1, landmarks=10),
        )
        for _ in range(2)
    )
    run.influence((x, y), queries)

    found = run.influence(more, queries)

    torch.testing.assert_close(found, fresh.influence(more, queries))
    assert len(run.kept) == 1


def test_the_numbers_of_landmarks_count(monkeypatch):
    model, shape = nets()["one position"]
    run = run_of(model, lambda: tracin.Kernel(0.1))
    run.kept = KeptMetrics(most=800)  # 30 landmarks of 9 + 8 numbers, and 900 of their inverse

    run.self_influence(data_for(shape))

    assert len(run.kept) == 0


@pytest.fixture
def fits(monkeypatch):
    """How often moments were added up: one entry per checkpoint."""
    from tracin.preconditioners import ekfac, kfac

    made, own = [], kfac.CurvatureFit

    def counted(parameters):
        made.append(1)
        return own(parameters)

    monkeypatch.setattr(kfac, "CurvatureFit", counted)
    monkeypatch.setattr(ekfac, "CurvatureFit", counted)
    return made


def test_the_next_question_about_the_same_data_uses_it(preconditioner, fits):
    model, shape = nets()["one position"]
    states = [{n: one + k for n, one in model.state_dict().items()} for k in range(2)]
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    run = run_of(model, preconditioner, states)

    first = run.influence(train, queries)
    again = run.influence(tuple(each.clone() for each in train), queries)
    run.explain(train, queries, k=2)
    run.self_influence(train)

    assert len(fits) == 2
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_other_data_are_fitted_anew_if_one_label_differs(preconditioner, fits):
    model, shape = nets()["one position"]
    x, y = data_for(shape)
    queries = data_for(shape, QUERIES, seed=2)
    run = run_of(model, preconditioner)
    run.influence((x, y), queries)
    y[3] = (y[3] + 1) % 3  # in place, too

    found = run.influence((x, y), queries)

    assert len(fits) == 2
    fresh = run_of(model, preconditioner).influence((x, y), queries)
    torch.testing.assert_close(found, fresh, rtol=0, atol=0)


def test_weights_that_were_changed_in_place_are_fitted_anew(preconditioner, fits):
    model, shape = nets()["one position"]
    state = {name: one.clone() for name, one in model.state_dict().items()}
    train, queries = data_for(shape), data_for(shape, QUERIES, seed=2)
    run = run_of(model, preconditioner, [state])
    run.influence(train, queries)
    state["0.weight"] *= 2

    found = run.influence(train, queries)

    assert len(fits) == 2
    fresh = run_of(model, preconditioner, [state]).influence(train, queries)
    torch.testing.assert_close(found, fresh, rtol=0, atol=0)


def test_memory_is_bounded_and_the_oldest_goes_first(preconditioner, fits):
    model, shape = nets()["one position"]
    train = data_for(shape)
    states = [{n: one + k for n, one in model.state_dict().items()} for k in range(3)]
    run = run_of(model, preconditioner, states)
    run.kept = KeptMetrics(most=200)

    run.self_influence(train)

    assert 0 < len(run.kept) < 3
    run.kept = KeptMetrics(most=1)
    run.self_influence(train)
    assert len(run.kept) == 0


def test_a_run_in_another_process_takes_none_along(preconditioner):
    model, shape = nets()["one position"]
    run = run_of(model, preconditioner)
    run.self_influence(data_for(shape))

    assert len(run.kept) == 1
    assert len(pickle.loads(pickle.dumps(run.kept))) == 0


class Scaled:
    """A loss with a setting that may change between two questions."""

    def __init__(self):
        self.scale = 1.0

    def __call__(self, model, batch):
        logits = self.scale * model(batch[0])
        return torch.nn.functional.cross_entropy(logits, batch[1], reduction="none")


class Warm(torch.nn.Module):
    """A model with a setting that is no tensor."""

    def __init__(self):
        super().__init__()
        self.layer, self.temperature = torch.nn.Linear(4, 3), 1.0

    def forward(self, x):
        return self.layer(x) / self.temperature


def asked(model, loss, preconditioner):
    run = tracin.TracIn(model, loss, [model.state_dict()], preconditioner=preconditioner)
    return run, run.influence(data_for((4,)), data_for((4,), QUERIES, seed=2))


def test_a_loss_that_changed_is_fitted_anew(preconditioner):
    loss, model = Scaled(), nets()["one position"][0]
    run, before = asked(model, loss, preconditioner())

    loss.scale = 3.0

    now = run.influence(data_for((4,)), data_for((4,), QUERIES, seed=2))
    torch.testing.assert_close(now, asked(model, loss, preconditioner())[1], rtol=0, atol=0)
    assert not torch.allclose(now, before)


def test_a_loss_whose_settings_are_out_of_sight_is_fitted_anew(preconditioner):
    held, model = [Scaled()], nets()["one position"][0]

    def behind(model, batch):
        return GLOBAL[0](model, batch)

    GLOBAL[:] = held
    run, _ = asked(model, behind, preconditioner())

    held[0].scale = 3.0

    now = run.influence(data_for((4,)), data_for((4,), QUERIES, seed=2))
    torch.testing.assert_close(
        now, asked(model, held[0], preconditioner())[1], rtol=1e-10, atol=1e-10
    )


GLOBAL = []


def test_a_model_whose_settings_changed_is_fitted_anew(preconditioner):
    model = Warm()
    run, before = asked(model, "cross_entropy", preconditioner())

    model.temperature = 0.25

    now = run.influence(data_for((4,)), data_for((4,), QUERIES, seed=2))
    new = asked(model, "cross_entropy", preconditioner())[1]
    torch.testing.assert_close(now, new, rtol=0, atol=0)
    assert not torch.allclose(now, before)


def test_another_preconditioner_on_a_run_is_not_served_the_first_ones_curvature(preconditioner):
    model = nets()["one position"][0]
    run, _ = asked(model, "cross_entropy", preconditioner())

    run.preconditioner = preconditioner(damping=7.0)

    now = run.influence(data_for((4,)), data_for((4,), QUERIES, seed=2))
    new = asked(model, "cross_entropy", preconditioner(damping=7.0))[1]
    torch.testing.assert_close(now, new, rtol=0, atol=0)
