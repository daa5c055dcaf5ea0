"""Many models at once, against training each alone; and trainings that continue."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tracin.analysis.seeded import seeded
from tracin.errors import DataError, LossError, OutputError, QueryError, UnsupportedModelError
from tracin.evaluate import FitsMany, StackedFit, half_subsets, retrained_losses

SEEDS = [0, 1, 1, 7]


def points(examples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(examples) % 3
    spread = torch.randn(examples, 3, generator=generator)
    return (1.5 * torch.eye(3)[labels] + spread).double(), labels


def mlp():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)).double()


class Tied(nn.Module):
    """One matrix used twice, a frozen layer, and a buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("scale", torch.rand(3))

    def forward(self, inputs):
        return (self.frozen(inputs @ self.weight).tanh() @ self.weight.T) * self.scale


def normalised():
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()


OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.01),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


def fit_of(model=mlp, loss="cross_entropy", optimizer=OPTIMIZERS["SGD"], **more):
    return StackedFit(model, loss, optimizer, **{"epochs": 3, "batch_size": 8, **more})


def alone(fit, train, subsets, seeds):
    models = []
    for subset, seed in zip(subsets, seeds, strict=True):
        with seeded(seed):
            models.append(fit(tuple(each[subset] for each in train)))
    return models


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_models_trained_at_once_are_those_trained_alone(optimizer):
    train, subsets = points(42), half_subsets(42, 4)  # 21 per half: two batches of 8, one of 5
    fit = fit_of(optimizer=optimizer)

    assert_equal(fit.fit_many(train, subsets, SEEDS), alone(fit, train, subsets, SEEDS))


@pytest.mark.parametrize("model", [lambda: Tied().double(), normalised], ids=["tied", "BatchNorm"])
def test_models_of_other_kinds_are_those_trained_alone(model):
    train, subsets = points(40), half_subsets(40, 4)
    fit = fit_of(model, batch_size=10)

    assert_equal(fit.fit_many(train, subsets, SEEDS), alone(fit, train, subsets, SEEDS))


def test_dict_batches_and_losses_of_ones_own():
    inputs, labels = points(40)
    subsets = half_subsets(40, 4)

    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none") * 2

    own = fit_of(loss=loss, optimizer=partial(torch.optim.SGD, lr=0.05))

    assert_equal(
        own.fit_many({"x": inputs, "y": labels}, subsets, SEEDS),
        fit_of().fit_many((inputs, labels), subsets, SEEDS),
    )


def test_the_same_losses_however_the_models_are_trained():
    train, queries, subsets = points(30), points(5, seed=1), half_subsets(30, 5)
    fit = fit_of(at_once=4)
    before = torch.get_rng_state()

    at_once = retrained_losses(train, queries, fit, "cross_entropy", subsets, seeds=(3, 5))
    one_by_one = retrained_losses(
        train, queries, lambda data: fit(data), "cross_entropy", subsets, seeds=(3, 5)
    )

    assert isinstance(fit, FitsMany)
    torch.testing.assert_close(at_once.losses, one_by_one.losses, rtol=1e-9, atol=0)
    with seeded(5):
        model = fit(tuple(each[subsets[2]] for each in train))
    wanted = F.cross_entropy(model(queries[0]), queries[1], reduction="none")
    torch.testing.assert_close(at_once.losses[2, 1], wanted.detach(), rtol=1e-9, atol=0)
    assert torch.get_rng_state().equal(before)


# How many models were made, and may be: what a global holds is no setting of a fit.
MADE = {"now": 0, "most": 0}


def counted():
    if MADE["now"] == MADE["most"]:
        raise KeyboardInterrupt
    MADE["now"] += 1
    return mlp()


@pytest.mark.parametrize("is_stacked", [False, True])
def test_a_rerun_continues_where_it_was_broken_off(tmp_path, is_stacked):
    train, queries, subsets = points(30), points(5, seed=1), half_subsets(30, 4)
    MADE["now"] = 0

    def asked(limit, seeds=(0, 1)):
        MADE["most"] = limit
        fit = fit_of(counted, at_once=2)
        return retrained_losses(
            train, queries, fit if is_stacked else lambda data: fit(data), "cross_entropy", subsets,
            seeds=seeds, folder=tmp_path, settings={"rate": 0.1},
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        asked(4)
    first = asked(99)
    assert MADE["now"] == 8
    assert asked(8).losses.equal(first.losses)
    more = asked(99, seeds=(0, 1, 2))
    assert MADE["now"] == 12
    assert more.losses[:, :2].equal(first.losses)


def test_a_folder_of_other_data_is_refused(tmp_path):
    train, queries, subsets = points(30), points(5, seed=1), half_subsets(30, 2)

    def asked(train, **settings):
        retrained_losses(
            train, queries, fit_of(), "cross_entropy", subsets, seeds=(0,), folder=tmp_path,
            settings=settings,
        )  # fmt: skip

    asked(train)

    with pytest.raises(OutputError, match=r"Cannot continue the trainings in .* train changed"):
        asked(points(30, seed=4))
    with pytest.raises(OutputError, match="epochs changed"):
        asked(train, epochs=4)


def test_subsets_of_several_sizes_are_trained_in_groups():
    train, queries = points(30), points(5, seed=1)
    subsets = [torch.arange(10), torch.arange(4, 19), torch.arange(12, 22)]
    fit = fit_of()

    found = retrained_losses(train, queries, fit, "cross_entropy", subsets, seeds=(0,))

    wanted = alone(fit, train, subsets, [0, 0, 0])
    for at, model in enumerate(wanted):
        losses = F.cross_entropy(model(queries[0]), queries[1], reduction="none").detach()
        torch.testing.assert_close(found.losses[at, 0], losses, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("subsets", "words"),
    [
        ([], "At least one subset of train"),
        ([torch.tensor([0, 30])], r"from 0 to 29; came \[0, 30\]. half_subsets\(30, 100\)"),
        ([torch.tensor([0.0])], r"whole numbers from 0 to 29; came \[0.0\]"),
        ([torch.tensor([4, 4])], r"holds each position once; came \[4, 4\]"),
        ([torch.tensor([], dtype=torch.int64)], r"came \[\]"),
    ],
)
def test_subsets_that_cannot_be_are_refused(subsets, words):
    with pytest.raises(QueryError, match=words):
        retrained_losses(points(30), points(5), fit_of(), "cross_entropy", subsets, seeds=(0,))


def test_what_cannot_be_trained_at_once_is_refused():
    train, subsets = points(30), half_subsets(30, 2)

    def refuses(fit, error, words, train=train, subsets=subsets, seeds=(0, 1)):
        with pytest.raises(error, match=words):
            fit.fit_many(train, subsets, list(seeds))

    dropout = fit_of(lambda: nn.Sequential(nn.Dropout(0.5), mlp()))
    refuses(dropout, UnsupportedModelError, "cannot be trained at once: .*Train each alone")
    lbfgs = fit_of(optimizer=torch.optim.LBFGS)
    refuses(lbfgs, QueryError, "treats each number by itself, one of SGD, Adam.*; LBFGS came")
    mean = fit_of(loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    refuses(mean, LossError, r"returned shape \(\) per model, .* needed: \(8,\)")
    refuses(fit_of(), QueryError, r"2 subsets of \[15\] examples and 1 seeds", seeds=(0,))
    refuses(fit_of(lambda: 3), QueryError, "model makes a new torch.nn.Module")
    texts = {"labels": train[1], "text": ["a"] * 30}
    refuses(
        fit_of(), DataError, r"tensors with the examples first; the batch's .*text", train=texts
    )
    with pytest.raises(QueryError, match="batch_size is a whole number of at least 1; 0"):
        fit_of(batch_size=0)


class Rows(torch.utils.data.Dataset):
    """A dataset of the user's own."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, at):
        return self.inputs[at], self.labels[at]


class Cropped(Rows):
    """Another example each time, by torch's generator."""

    def __getitem__(self, at):
        return self.inputs[at] + 0.1 * torch.randn(3), self.labels[at]


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 4},
        {"batch_size": 4},
        {"optimizer": OPTIMIZERS["Adam"]},
        {"optimizer": partial(torch.optim.SGD, lr=0.2)},
        {"model": normalised},
        {"loss": "mse"},
    ],
    ids=["epochs", "batch size", "kind of optimizer", "rate", "model", "loss"],
)
def test_a_stacked_fit_that_trains_otherwise_is_refused(tmp_path, change):
    def ask(fit):
        return retrained_losses(
            points(12), points(2), fit, "cross_entropy", half_subsets(12, 2), folder=tmp_path
        )

    ask(fit_of())
    ask(fit_of(at_once=1))

    with pytest.raises(
        OutputError, match=r"Cannot continue the trainings in .* stacked_fit changed"
    ):
        ask(fit_of(**change))


def test_a_label_that_changed_in_a_dataset_is_seen(tmp_path):
    inputs, labels = points(12)

    def ask(train):
        return retrained_losses(
            train, points(2), fit_of(), "cross_entropy", half_subsets(12, 2), folder=tmp_path
        )

    ask(Rows(inputs, labels))
    ask(Rows(inputs.clone(), labels.clone()))
    labels[3] = (labels[3] + 1) % 3

    with pytest.raises(OutputError, match="train changed"):
        ask(Rows(inputs, labels))


def test_trainings_on_a_dataset_that_draws_continue(tmp_path):
    train = Cropped(*points(12))
    subsets, states = half_subsets(12, 2), []
    for _ in range(2):
        states.append(torch.get_rng_state())
        retrained_losses(train, points(2), fit_of(), "cross_entropy", subsets, folder=tmp_path)
        torch.rand(3)

    assert not torch.equal(*states)
