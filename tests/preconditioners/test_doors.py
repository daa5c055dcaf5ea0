"""Every public call that takes a run or a preconditioner works under it, or refuses in words."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import tracin
from own_process import fork_workers
from preconditioners.nets import QUERIES, data_for, nets
from tracin.errors import PreconditionerError, QueryError
from tracin.preconditioners.kfac import CurvatureFit

pytestmark = pytest.mark.usefixtures("float64")
ALL = {"KFAC": tracin.KFAC(), "EKFAC": tracin.EKFAC(), "Kernel": tracin.Kernel(0.5)}


@pytest.fixture(params=ALL)
def curvature(request):
    return ALL[request.param]


def run_of(curvature, checkpoints=2):
    model, _ = nets()["one position"]
    rates = "equal" if curvature is None else None
    states = [{n: one + k for n, one in model.state_dict().items()} for k in range(checkpoints)]
    return tracin.TracIn(
        model, "cross_entropy", states, preconditioner=curvature, learning_rates=rates
    )


def doubled(data):
    return data[0].double(), data[1]


# Made before a test has chosen float64.
TRAIN, ASKED = doubled(data_for((4,))), doubled(data_for((4,), QUERIES, seed=2))


def test_contributions_add_up_to_self_influence(curvature):
    run = run_of(curvature)

    found = tracin.contributions(run, TRAIN, ASKED)

    torch.testing.assert_close(found.self_influence.sum(0), run.self_influence(TRAIN))
    sums = run.influence(TRAIN, ASKED).sum(0)
    assert found.positive is not None
    assert found.negative is not None
    torch.testing.assert_close((found.positive + found.negative).sum(0), sums)


def test_select_takes_the_scores_of_the_run(curvature):
    run = run_of(curvature)

    found = tracin.select(run, TRAIN, ASKED, 3, duplicates=None)

    first = run.influence(TRAIN, ASKED)
    assert len(found) == 3
    assert torch.isfinite(first).all()


def test_explain_gives_the_largest_scores(curvature):
    run = run_of(curvature)

    found = run.explain(TRAIN, ASKED, k=2)

    best = run.influence(TRAIN, ASKED).argmax(0)
    assert [found[at].proponents[0].position for at in range(QUERIES)] == best.tolist()


def test_verify_and_losses_are_those_without_it(curvature):
    run, plain = run_of(curvature), run_of(None, 1)

    assert max(run.verify(TRAIN).errors.values()) < 1e-9
    assert tracin.training_losses(run, TRAIN)[0] == tracin.training_losses(plain, TRAIN)[0]


def test_baselines_take_the_run_and_not_its_preconditioner(curvature):
    from tracin.baselines import GraNd

    found, plain = (GraNd(run_of(each)).scores(TRAIN) for each in (curvature, None))

    torch.testing.assert_close(
        torch.as_tensor(np.asarray(found)), torch.as_tensor(np.asarray(plain))
    )


def test_an_index_is_built_of_plain_gradients(curvature, tmp_path):
    index = run_of(curvature).index(TRAIN, tmp_path, tracin.Projection(64), recall_queries=0)

    with pytest.raises(QueryError, match="norms of plain gradients"):
        index.self_influence()


@pytest.mark.parametrize("name", ["EKFAC", "Kernel"])
def test_an_index_refuses_a_query_whose_curvature_rows_cannot_give(name, tmp_path):
    index = run_of(ALL[name]).index(TRAIN, tmp_path, tracin.Projection(64), recall_queries=0)

    with pytest.raises(PreconditionerError, match=r"sketches of plain gradients.*run\.influence"):
        index.explain(ASKED, 2)


def test_processes_build_the_index_of_a_run_that_has_it(tmp_path, monkeypatch):
    fork_workers(monkeypatch)
    run = run_of(tracin.KFAC())
    run.self_influence(TRAIN)  # what is kept does not go along
    engine = tracin.engines.Processes(2)

    index = run.index(TRAIN, tmp_path / "two", tracin.Projection(64), engine=engine)

    found = index.explain(ASKED, 2, exact=True)
    torch.testing.assert_close(
        found.proponents.scores, run.explain(TRAIN, ASKED, 2).proponents.scores
    )


@pytest.mark.parametrize("name", ["KFAC", "EKFAC"])
def test_mislabelled_has_the_last_layers_share(name):
    run = run_of(ALL[name])

    found = run.find_mislabelled(TRAIN)

    own = run.self_influence(TRAIN)[torch.as_tensor(found.ids)]
    torch.testing.assert_close(found.self_influence, own, rtol=1e-7, atol=1e-9)


def test_two_preconditioners_at_once_are_refused_in_words():
    with pytest.raises(QueryError, match="preconditioner is None or an object"):
        run_of((tracin.Adam(), tracin.KFAC()))


@pytest.mark.parametrize("name", ["KFAC", "EKFAC"])
def test_coverage_says_how_curvature_is_held(name, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(6, 4), nn.Flatten(), nn.Linear(8, 5), nn.LayerNorm(5), nn.Linear(5, 3)
    )
    words = torch.randint(6, (20, 2)), torch.arange(20) % 3
    monkeypatch.setattr("tracin.preconditioners.second_moments.WIDEST", 7)

    def coverage(curvature):
        run = tracin.TracIn(
            model,
            "cross_entropy",
            [model.state_dict()],
            preconditioner=curvature,
            learning_rates="equal",
        )
        return run.coverage(words).entries

    found = coverage(ALL[name])

    assert found["2.weight"].reason.endswith("curvature: factors 5 x diagonal 9")
    assert found["2.bias"].reason.endswith("curvature: with '2.weight'")
    assert found["4.weight"].reason.endswith("curvature: factors 3 x 6")
    assert found["0.weight"].reason.endswith("curvature: factors frequencies of 6 rows x 4")
    assert found["3.weight"].reason.endswith("curvature: one number")
    assert "curvature" not in coverage(None)["4.weight"].reason


def test_moments_of_two_halves_add_up_to_those_of_the_whole():
    """What shards and ranks would add: the curvature of all is that of their parts."""
    model, _ = nets()["several positions"]
    train = data_for((6, 4))
    parameters = dict(model.named_parameters())

    def fit(*parts):
        whole = CurvatureFit(parameters)
        for part in parts:
            x, y = train[0][part], train[1][part]
            run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])
            from tracin.run import checkpoint_pass

            walk = checkpoint_pass(run)
            with walk.at(0):
                walk.gradients.check((x, y))
                walk.gradients.begin(len(y), is_checked=True)
                batch = whole.batch(len(y))
                walk.gradients.visit((x, y), batch.visit, is_last=True)
                batch.commit()
        return whole.factored

    one, two = fit(slice(0, 30)), fit(slice(0, 13), slice(13, 30))
    assert one.keys() == two.keys() == {"one.weight", "two.weight"}
    for name, (moments, constant) in one.items():
        other, other_constant = two[name]
        assert (constant, moments.examples) == (other_constant, other.examples)
        torch.testing.assert_close(other.left.products, moments.left.products)
        torch.testing.assert_close(other.right.products, moments.right.products)


@pytest.mark.parametrize("checkpoints", [1, 2])
def test_a_single_checkpoint_that_fits_nearly_all_examples_is_warned_of(checkpoints):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    x = torch.randn(600, 4)
    y = (x[:, 0] > 0).long()
    y[:5] = 1 - y[:5]  # what alone is left to learn
    fitted = {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}
    fitted["weight"][1, 0] = 50.0
    states = [{n: one * (k + 1) for n, one in fitted.items()} for k in range(checkpoints)]

    for curvature, asked in ((ALL["KFAC"], (x, y)), (ALL["KFAC"], data_for((4,)))):
        run = tracin.TracIn(model, "cross_entropy", states, preconditioner=curvature)
        labels = asked[1] % 2
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.influence((asked[0], labels), (x[:2], y[:2]))
        said = [str(each.message) for each in caught]
        is_expected = checkpoints == 1 and len(labels) == 600
        assert any("of 600 examples" in each for each in said) == is_expected


@pytest.mark.parametrize("name", ["KFAC", "EKFAC", "Kernel"])
@pytest.mark.parametrize(
    "fit",
    [TRAIN[0], (TRAIN[0][:, :3], TRAIN[1]), (TRAIN[0].half(), TRAIN[1]), (TRAIN[0], TRAIN[1] + 9)],
    ids=["no labels", "other width", "other kind of number", "other classes"],
)
def test_fit_data_of_another_kind_are_refused_by_name(name, fit):
    run = run_of(type(ALL[name])(fit=fit))

    with pytest.raises(PreconditionerError, match=rf"from the data of {name}\(fit=.*same kind as"):
        run.influence(TRAIN, ASKED)


@pytest.mark.parametrize("name", ["KFAC", "EKFAC"])
def test_a_bias_with_another_rate_than_its_weight_is_refused(name):
    model, _ = nets()["one position"]
    names = [each for each, _ in model.named_parameters()]

    def run(rates):
        return tracin.TracIn(
            model, "cross_entropy", [model.state_dict()], preconditioner=ALL[name],
            learning_rates=[rates],
        )  # fmt: skip

    by_layer = run({each: 0.1 * (1 + int(each[0])) for each in names})
    by_name = run({each: 0.2 if "bias" in each else 0.1 for each in names})

    own = by_layer.self_influence(TRAIN)
    torch.testing.assert_close(own, by_layer.influence(TRAIN, TRAIN).diagonal())
    for ask in (by_name.self_influence, lambda data: by_name.influence(data, ASKED)):
        with pytest.raises(PreconditionerError, match=r"bias' together with .* one learning rate"):
            ask(TRAIN)
