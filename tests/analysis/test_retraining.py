"""Trainings on changed data, against the same trainings done by hand."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tracin
from tracin.analysis import (
    UniformWrong,
    fix_and_retrain,
    leave_one_out,
    noisy_labels,
    remove_and_retrain,
)
from tracin.analysis.seeded import seeded
from tracin.errors import DataError, LossError, NonFiniteError, OutputError, QueryError
from tracin.random_state import RandomState


def blobs(examples, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(examples) % 2
    return torch.randn(examples, 2, generator=generator) + 2.0 * labels[:, None] - 1.0, labels


def linear(data, steps=40):
    """A linear classifier, from random first weights."""
    inputs, labels = data[0], data[1]
    model = torch.nn.Linear(2, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs.double()), labels).backward()
        optimizer.step()
    return model


@pytest.fixture
def noisy():
    """Data with a third of the labels of one class wrong, and the truth."""
    inputs, labels = blobs(60, seed=1)
    return (inputs, labels), noisy_labels(labels, UniformWrong(2), 0.3, seed=0)


def accuracy(model):
    inputs, labels = blobs(200, seed=2)
    return float((model(inputs.double()).argmax(1) == labels).double().mean())


def test_fixing_by_the_truth_reaches_what_right_labels_reach(noisy):
    train, planted = noisy

    curve = fix_and_retrain(
        train,
        planted,
        {"truth": planted.is_noisy, "none": -planted.is_noisy.double()},
        linear,
        accuracy,
        fractions=[0, 0.3],
        seeds=[0, 1, 2],
    )

    assert curve.limit is not None
    assert curve.values[0, 1].tolist() == curve.limit.tolist()
    assert curve.values[0, 0].tolist() == curve.values[1, 0].tolist()
    assert curve.changed[:, :, 0].tolist() == [[0, 18], [0, 0]]
    assert float(curve.difference("truth", "none").mean[0]) == 0


def test_every_cell_is_what_training_by_hand_gives(noisy):
    train, planted = noisy
    scores = torch.randn(60, generator=torch.Generator().manual_seed(5))

    curve = fix_and_retrain(
        train, planted, scores, linear, accuracy, fractions=[0.1, 0.5], seeds=[3, 4]
    )

    ranked = sorted(range(60), key=lambda at: -float(scores[at]))
    for column, share in enumerate((0.1, 0.5)):
        labels = planted.labels.clone()
        for at in ranked[: round(60 * share)]:
            labels[at] = train[1][at]
        for place, seed in enumerate((3, 4)):
            torch.manual_seed(seed)
            expected = accuracy(linear((train[0], labels)))
            assert float(curve.values[0, column, place]) == expected


def test_removing_is_what_training_without_gives(noisy):
    train, planted = noisy
    suspect = planted.is_noisy.double() + torch.arange(60) / 100
    data = train[0], planted.labels

    curve = remove_and_retrain(data, suspect, linear, accuracy, fractions=[0, 0.3], seeds=[0, 1])

    for place, seed in enumerate((0, 1)):
        kept = torch.tensor([at for at in range(60) if not planted.is_noisy[at]])
        torch.manual_seed(seed)
        assert float(curve.values[0, 1, place]) == accuracy(
            linear((train[0][kept], train[1][kept]))
        )
    assert curve.limit is None
    assert curve.changed[0, :, 0].tolist() == [0, 18]


def test_equal_scores_are_taken_in_an_order_that_the_seed_draws():
    train = torch.arange(50.0)

    def sums(seeds):
        return remove_and_retrain(
            train, torch.ones(50), torch.sum, float, fractions=[0.5], seeds=seeds
        ).values.flatten()

    assert sums([0]).equal(sums([0]))
    assert len(set(sums(range(5)).tolist())) == 5


def test_a_rerun_continues_where_it_was_broken_off(noisy, tmp_path):
    train, planted = noisy
    done = []

    def counted(limit):
        def fit(data):
            if len(done) == limit:
                raise KeyboardInterrupt
            done.append(1)
            return linear(data)

        return fit

    def asked(fit, seeds=(0, 1), **more):
        return fix_and_retrain(
            train, planted, {"a": torch.arange(60), **more}, fit, accuracy,
            fractions=[0, 0.2, 0.4], seeds=seeds, folder=tmp_path, settings={"rate": 0.5},
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        asked(counted(3))
    first = asked(counted(99))
    at_once = fix_and_retrain(
        train, planted, {"a": torch.arange(60)}, linear, accuracy,
        fractions=[0, 0.2, 0.4], seeds=(0, 1),
    )  # fmt: skip
    assert first.values.equal(at_once.values)
    assert len(done) == 2 * (3 + 1)
    again = asked(counted(len(done)))
    assert again.values.equal(first.values)

    asked(counted(99), seeds=(0, 1, 2), b=-torch.arange(60))
    assert len(done) == 8 + 2 * 2 + 6  # two of b's for each old seed; six for the new one
    assert not list(tmp_path.glob(".*"))


def test_a_folder_of_other_settings_is_refused(noisy, tmp_path):
    train, planted = noisy

    def asked(train=train, folder=tmp_path, **settings):
        return fix_and_retrain(
            train, planted, torch.arange(60), lambda data: data, lambda model: 1.0,
            fractions=[0], folder=folder, settings=settings,
        )  # fmt: skip

    asked(rate=0.5)

    with pytest.raises(OutputError, match=r"rate changed \(was 0.5, now 0.1\). Use another folder"):
        asked(rate=0.1)
    with pytest.raises(OutputError, match=r"Cannot continue .* epochs changed \(was None, now 3\)"):
        asked(rate=0.5, epochs=3)
    with pytest.raises(OutputError, match="train changed"):
        asked((train[0] + 1, train[1]), rate=0.5)
    with pytest.raises(OutputError, match=r"experiment changed \(was 'fix_and_retrain', now 'rem"):
        remove_and_retrain(train, torch.arange(60), linear, accuracy, folder=tmp_path)
    with pytest.raises(QueryError, match="settings holds numbers, texts"):
        asked(rate=torch.ones(2))


def test_a_damaged_cell_is_not_believed(noisy, tmp_path):
    train, planted = noisy

    def asked():
        return fix_and_retrain(
            train, planted, torch.arange(60), linear, accuracy, fractions=[0], folder=tmp_path
        )

    asked()
    cell = next(path for path in tmp_path.glob("*.json") if path.name != "settings.json")
    content = json.loads(cell.read_text())
    cell.write_text(json.dumps({**content, "values": [1.0]}))

    with pytest.raises(OutputError, match="does not match its own checksum"):
        asked()


def test_the_users_random_numbers_are_left_alone(noisy):
    train, planted = noisy
    before = RandomState.now()

    def fit(data):
        random.random()
        np.random.rand()
        return linear(data)

    fix_and_retrain(train, planted, torch.arange(60), fit, accuracy, fractions=[0.1])
    queries = train[0].double(), train[1]
    leave_one_out(train, queries, fit, "cross_entropy", examples=[3])

    assert RandomState.now() == before
    with seeded(2**32 + 1):
        assert torch.initial_seed() == 2**32 + 1


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"fractions": [20]}, QueryError, "from 0 to 1, rising"),
        ({"fractions": []}, QueryError, "from 0 to 1, rising"),
        ({"fractions": [0.2, 0.1]}, QueryError, r"rising; \[0.2, 0.1\] was given"),
        ({"seeds": []}, QueryError, "at least one whole number from 0 on"),
        ({"seeds": [1, 1]}, QueryError, "each once"),
        ({"scores": torch.zeros(59)}, DataError, r"per training example is needed, 60; .* has 59"),
        ({"scores": {}}, DataError, "At least one ranking is needed"),
        ({"metric": lambda model: torch.nan}, NonFiniteError, "returned nan: that training div"),
        ({"metric": lambda model: "good"}, QueryError, "returns one number.*a str came"),
    ],
)
def test_what_cannot_be_retrained_is_refused(noisy, changes, error, words):
    train, planted = noisy
    given = {"scores": torch.zeros(60), "metric": lambda model: 1.0, **changes}

    with pytest.raises(error, match=words):
        fix_and_retrain(
            train, planted, given.pop("scores"), lambda data: None, given.pop("metric"), **given
        )


def test_nothing_left_is_refused():
    with pytest.raises(QueryError, match="no example is left to train on"):
        remove_and_retrain(torch.zeros(4), [1, 2, 3, 4], torch.sum, float, fractions=[1.0])


def test_a_retraining_prints_saves_and_draws(noisy, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    train, planted = noisy
    curve = fix_and_retrain(
        train, planted, {"a": torch.arange(60)}, linear, accuracy, fractions=[0, 0.2], seeds=[0, 1]
    )

    curve.save(tmp_path / "curve.parquet")
    axes = curve.plot()

    assert (
        str(curve).splitlines()[0].startswith("labels put right, then trained again with 2 seeds")
    )
    assert "+-" in str(curve).splitlines()[2]
    assert [line.get_label() for line in axes.get_lines()] == ["every label right", "a"]
    assert (tmp_path / "curve.parquet").is_file()
    with pytest.raises(QueryError, match="no ranking 'b'; there are 'a'"):
        curve.metric("b")
    pyplot.close("all")


# One example less


def ridge(data):
    """Least squares with a penalty, in closed form: no random numbers, no steps."""
    inputs, targets = data[0].double(), data[1].double()
    model = torch.nn.Linear(3, 1, bias=False).double()
    gram = inputs.T @ inputs + 0.1 * torch.eye(3)
    model.weight.data = torch.linalg.solve(gram, inputs.T @ targets)[None]
    return model


def line(examples):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples + 3, 3, generator=generator).double()
    targets = inputs.sum(1) + torch.randn(examples + 3, generator=generator).double()
    return (inputs[:examples], targets[:examples]), (inputs[examples:], targets[examples:])


@pytest.fixture
def regression():
    return line(9)


def test_leaving_out_is_retraining_without(regression):
    train, queries = regression

    told = leave_one_out(train, queries, ridge, "mse")

    def losses(data):
        return (queries[0] @ ridge(data).weight[0] - queries[1]).square()

    for example in range(9):
        rest = [at for at in range(9) if at != example]
        expected = losses((train[0][rest], train[1][rest])) - losses(train)
        assert told.changes[0, example].tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_influence_agrees_with_leaving_out_where_it_should():
    train, queries = line(60)
    model = ridge(train)
    run = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates="equal")
    # One step of Newton's method from the trained model says what leaving out does.
    gram = train[0].T @ train[0] + 0.1 * torch.eye(3)
    away = (train[0] @ model.weight[0] - train[1])[:, None] * train[0]
    query = (queries[0] @ model.weight[0] - queries[1])[:, None] * queries[0]
    newton = 2 * away @ torch.linalg.inv(gram) @ query.T

    told = leave_one_out(train, queries, ridge, "mse")

    assert told.agreement(newton).pooled > 0.9
    assert told.agreement(run.influence(train, queries)).pooled > 0.5


def test_leaving_out_some_with_seeds_has_intervals(regression, tmp_path):
    train, queries = regression
    named = tracin.WithIds(train, list("abcdefghi"))

    def fit(data):
        pairs = [data[at] for at in range(len(data))]
        columns = torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])
        model = ridge(columns)
        model.weight.data += 0.01 * torch.randn(3)
        return model.train()

    told = leave_one_out(
        named, queries, fit, "mse", examples=[4, 1], seeds=[0, 1, 2], folder=tmp_path
    )

    assert told.ids.tolist() == ["e", "b"]
    assert told.changes.shape == (3, 2, 3)
    assert told.change.mean.allclose(told.changes.mean(0))
    assert told.columns()["id"].tolist() == ["e"] * 3 + ["b"] * 3
    assert "change +-" in str(told)

    def unused(data):
        raise AssertionError("this training is finished")

    again = leave_one_out(named, queries, unused, "mse", examples=[4], seeds=[0], folder=tmp_path)
    assert again.changes[0, 0].equal(told.changes[0, 0])
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    assert len(told.plot().get_lines()) > 0
    pyplot.close("all")


def test_what_cannot_be_left_out_is_refused(regression):
    train, queries = regression

    wrong: list[Any] = [[9], [-1], [], [0.5]]
    for examples in wrong:
        with pytest.raises(QueryError, match="positions in train, from 0 to 8"):
            leave_one_out(train, queries, ridge, "mse", examples=examples)
    with pytest.raises(QueryError, match="each position once"):
        leave_one_out(train, queries, ridge, "mse", examples=[1, 1])
    with pytest.raises(QueryError, match="nothing to train on"):
        leave_one_out((train[0][:1], train[1][:1]), queries, ridge, "mse")
    told = leave_one_out(train, queries, ridge, "mse", examples=[1, 8])
    with pytest.raises(QueryError, match=r"these 3 queries; \[9, 2\] came"):
        told.agreement(torch.zeros(9, 2))

    def broken(data):
        model = ridge(data)
        model.weight.data.fill_(torch.nan)
        return model

    with pytest.raises(NonFiniteError, match="loss of query 0 is nan after a training"):
        leave_one_out(train, queries, broken, "mse", examples=[1])


def test_a_model_trained_further_is_refused(noisy):
    train, planted = noisy
    model = torch.nn.Linear(2, 2).double()
    queries = train[0][:2].double(), train[1][:2]

    def further(data):
        return model

    for call in (
        lambda: fix_and_retrain(train, planted, planted.is_noisy, further, accuracy),
        lambda: remove_and_retrain(train, planted.is_noisy, further, accuracy),
        lambda: leave_one_out(train, queries, further, "cross_entropy", examples=[0]),
    ):
        with pytest.raises(QueryError, match=r"fit returned the model that it had.*deepcopy\(mod"):
            call()


@pytest.mark.parametrize("name", ["train", "key", "experiment", "format", "checksum"])
def test_settings_do_not_take_the_names_of_the_folder(noisy, tmp_path, name):
    train, planted = noisy

    with pytest.raises(QueryError, match=f"settings has the name '{name}'"):
        fix_and_retrain(
            train, planted, planted.is_noisy, linear, accuracy,
            folder=tmp_path, settings={name: 1},
        )  # fmt: skip


def test_leaving_out_needs_one_loss_per_query_and_a_model(noisy):
    train, _ = noisy
    queries = train[0][:3].double(), train[1][:3]

    def averaged(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])[None]

    with pytest.raises(LossError, match=r"shape \(1,\) for 3 examples"):
        leave_one_out(train, queries, linear, averaged, examples=[0])
    with pytest.raises(QueryError, match=r"fit\(dataset\) returns the trained model.*NoneType"):
        leave_one_out(train, queries, lambda data: None, "cross_entropy", examples=[0])


def test_influence_that_is_nan_agrees_with_nothing(noisy):
    train, _ = noisy
    left_out = leave_one_out(
        train, (train[0][:2].double(), train[1][:2]), linear, "cross_entropy", examples=[0, 1]
    )

    with pytest.raises(NonFiniteError, match="influence of example 0 is NaN"):
        left_out.agreement(torch.full((60, 2), torch.nan))


def test_only_noisy_labels_can_be_fixed(noisy):
    train, planted = noisy

    with pytest.raises(DataError, match=r"noisy is what noisy_labels returns.*a Tensor was given"):
        fix_and_retrain(train, planted.labels, planted.is_noisy, linear, accuracy)


def test_queries_of_another_precision_are_named(noisy):
    train, _ = noisy

    with pytest.raises(DataError, match="the data is float32, but the model's weights are float64"):
        leave_one_out(train, (train[0][:2], train[1][:2]), linear, "cross_entropy", examples=[0])
