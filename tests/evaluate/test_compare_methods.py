"""Methods side by side, and what is recommended of them."""

import math
from functools import partial

import pytest
import torch

import tracin
from tracin.baselines import BM25, RandomScores
from tracin.errors import QueryError
from tracin.evaluate import (
    Method,
    RetrainedLosses,
    StackedFit,
    Texts,
    compare_lds,
    compare_methods,
    half_subsets,
    retrained_losses,
    standard_methods,
)
from tracin.evaluate.methods import CosineScores
from tracin.evaluate.recommendation import recommended


def points(examples, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(examples) % 3
    return 1.5 * torch.eye(3)[labels] + torch.randn(examples, 3, generator=generator), labels


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


TRAIN, QUERIES = points(40, 1), points(6, 2)
FIT = StackedFit(
    mlp, "cross_entropy", partial(torch.optim.SGD, lr=0.2), epochs=4, batch_size=10, at_once=40
)


@pytest.fixture(scope="module")
def run():
    torch.manual_seed(0)
    states = []
    for epochs in (2, 4):
        torch.manual_seed(0)
        model = StackedFit(mlp, "cross_entropy", FIT.optimizer, epochs=epochs, batch_size=10)(TRAIN)
        states.append(tracin.Checkpoint(model.state_dict(), 0.2, name=f"epoch {epochs}"))
    return tracin.TracIn(mlp(), "cross_entropy", states)


@pytest.fixture(scope="module")
def truth():
    return retrained_losses(
        TRAIN, QUERIES, FIT, "cross_entropy", half_subsets(40, 12), seeds=(7, 8)
    )


def test_each_method_scores_as_it_does_alone(run):
    found = compare_methods(run, TRAIN, QUERIES, k=5)

    def scores(checkpoints=run.checkpoints, **more):
        return tracin.TracIn(run.model, run.loss, checkpoints, **more).influence(TRAIN, QUERIES)

    curved = tracin.KFAC(fit=TRAIN)
    wanted = {
        "TracIn": scores(),
        "TracIn, last": scores(run.checkpoints[-1:]),
        "cosine": CosineScores(run).influence(TRAIN, QUERIES),
        "KFAC": scores(preconditioner=curved),
        "KFAC, last": scores(run.checkpoints[-1:], preconditioner=curved),
    }
    for name, each in wanted.items():
        torch.testing.assert_close(found[name].scores, each, rtol=1e-4, atol=1e-6)
    names = [each.name for each in found.methods]
    assert names == [*wanted, "random", "loss", "feature cosine"]
    assert found["cosine"].duplicates.mrr.value == 1
    assert found["random"].randomised is None
    assert found["TracIn"].identical_class is not None
    assert "No method is recommended: only retraining" in str(found)


def test_with_a_truth_the_table_leads_with_the_lds(run, truth):
    found = compare_methods(run, TRAIN, QUERIES, truth=truth, k=5, resamples=50)

    columns = found.columns()

    assert str(found).split()[:2] == ["method", "LDS"]
    assert columns["LDS"].tolist() == [found.lds[each.name].value for each in found.methods]
    scores = {each.name: each.scores for each in found.methods}
    assert found.lds["KFAC"].value == compare_lds(scores, truth, resamples=50)["KFAC"].value
    assert math.isnan(columns["shuffled"][columns["method"].tolist().index("random")])
    assert found.recommendation in str(found)
    with pytest.raises(QueryError, match="no method 'x'; there are 'TracIn', 'TracIn, last'"):
        found["x"]


def test_results_are_saved_and_drawn(run, truth, tmp_path):
    pytest.importorskip("pyarrow")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    method = Method("random", "random scores", lambda given: RandomScores(), reads_model=False)

    found = compare_methods(run, TRAIN, QUERIES, [method], truth=truth, k=5, resamples=20)
    found.save(tmp_path / "table.parquet")

    assert found.plot().get_xlabel() == "linear datamodelling score"
    with pytest.raises(QueryError, match=r"nothing was retrained. Give a truth"):
        compare_methods(run, TRAIN, QUERIES, [method], k=5).plot()


def test_the_runs_own_preconditioner_is_left_out(run):
    own = tracin.TracIn(run.model, run.loss, run.checkpoints, preconditioner=tracin.KFAC())

    found = compare_methods(own, TRAIN, QUERIES, k=5)

    plain = tracin.TracIn(run.model, run.loss, run.checkpoints, learning_rates="equal")
    wanted = plain.influence(TRAIN, QUERIES)
    torch.testing.assert_close(found["TracIn"].scores, wanted, rtol=1e-4, atol=1e-6)


def test_adam_is_a_method_where_every_checkpoint_has_moments(tmp_path):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with tracin.Recorder(model, optimizer, tmp_path, every=1, optimizer_state=True):
        for _ in range(2):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(TRAIN[0]), TRAIN[1]).backward()
            optimizer.step()
    with pytest.warns(tracin.CheckpointWarning, match="Trained with Adam, "):
        run = tracin.TracIn(model, "cross_entropy", tmp_path)

    found = compare_methods(run, TRAIN, QUERIES, k=5)

    own = tracin.TracIn(model, "cross_entropy", tmp_path, preconditioner=tracin.Adam())
    wanted = own.influence(TRAIN, QUERIES)
    torch.testing.assert_close(found["Adam"].scores, wanted, rtol=1e-4, atol=1e-8)


def test_a_regression_has_no_classes_and_no_features():
    model = torch.nn.Linear(3, 1)
    run = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates="equal")
    train, queries = (
        (each[0], each[0].sum(1, keepdim=True)) for each in (points(20, 1), points(4, 2))
    )

    found = compare_methods(run, train, queries, k=5)

    assert [each.name for each in found.methods] == ["TracIn", "cosine", "KFAC", "random", "loss"]
    assert found["TracIn"].identical_class is None
    assert found["TracIn"].tail_patch is None  # no learning rate is known
    assert str(found).splitlines()[0].split() == ["method", "copy", "shuffled", "seconds"]


def test_texts_are_compared_by_words(run):
    texts = Texts([f"text {at % 7}" for at in range(40)], [f"a text {at}" for at in range(6)])

    methods = standard_methods(run, TRAIN, has_texts=True)
    found = compare_methods(run, TRAIN, QUERIES, methods, texts=texts, k=5)

    wanted = BM25().influence([*texts.train, *texts.queries], texts.queries)[:40]
    assert torch.equal(found["BM25"].scores, wanted)
    with pytest.raises(QueryError, match=r"'BM25' reads texts, and none are known. Give texts="):
        compare_methods(run, TRAIN, QUERIES, methods, k=5)


def test_what_does_not_fit_is_refused(run, truth):
    random = Method("random", "random scores", lambda given: RandomScores())

    with pytest.raises(QueryError, match=r"under different names; \['random', 'random'\] were"):
        compare_methods(run, TRAIN, QUERIES, [random, random], k=5)
    with pytest.raises(QueryError, match="at least one, under different names"):
        compare_methods(run, TRAIN, QUERIES, [], k=5)
    with pytest.raises(QueryError, match="truth is of 40 examples and 6 queries, but 40 and 5"):
        compare_methods(run, TRAIN, points(5, 2), [random], truth=truth, k=5)
    with pytest.raises(QueryError, match="k=41 proponents were asked for"):
        compare_methods(run, TRAIN, QUERIES, [random], k=41)
    with pytest.raises(QueryError, match="compare_methods takes a run"):
        compare_methods("run", TRAIN, QUERIES)  # type: ignore[arg-type]


def comparison(noises, seeds=2, spread=4.0, subsets=60):
    """Methods that know the truth but for some noise."""
    generator = torch.Generator().manual_seed(0)
    halves = half_subsets(50, subsets)
    worth = torch.randn(50, 30, generator=generator, dtype=torch.float64)
    losses = -worth[halves].sum(1)[:, None].repeat(1, seeds, 1)
    losses = losses + spread * torch.randn(losses.shape, generator=generator, dtype=torch.float64)
    scores = {
        name: worth * (noise < 99) + noise * torch.randn(worth.shape, generator=generator)
        for name, noise in noises.items()
    }
    truth = RetrainedLosses(halves, losses, 50)
    return recommended(
        compare_lds(scores, truth, resamples=300),
        {name: f"use_{name}()" for name in noises},
        {name: float(at) for at, name in enumerate(reversed(noises))},
    )


def test_a_clear_lead_is_recommended_with_its_figures():
    words = comparison({"TracIn": 3.0, "KFAC": 0.1, "other": 1.0})

    assert words.startswith("Use use_KFAC(): its LDS 0.")
    assert "is above TracIn's 0." in words
    assert "and that of the next, other's 0." in words
    assert "the difference to other is +0." in words
    assert "The ceiling is 0." in words


def test_of_methods_within_the_interval_the_cheapest_is_recommended():
    words = comparison({"TracIn": 4.0, "KFAC": 0.3, "cheap": 0.301})

    assert words.startswith("Use use_cheap(): it costs least of those that lead.")
    assert "is within its 95 % interval" in words
    assert "Next is TracIn's" in words


def test_nothing_is_recommended_where_nothing_predicts():
    words = comparison({"a": 1e6, "b": 1e6}, subsets=20)

    assert words.startswith("No method is recommended: the highest LDS")
    assert "is not distinguishable from 0." in words


def test_a_noisy_truth_is_named():
    assert "Most of the retrained losses' order is noise of seeds" in comparison(
        {"KFAC": 0.0}, spread=15.0
    )
    assert "The ceiling is unknown" in comparison({"KFAC": 0.0}, seeds=1)
