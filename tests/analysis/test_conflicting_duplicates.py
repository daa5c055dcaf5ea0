"""Near-duplicates with different labels, against the plain way: one pair of examples at a time."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from tracin import conflicting_duplicates
from tracin.errors import DataError, LossError, NonFiniteError, QueryError, UnsupportedModelError


def task(examples: int = 30) -> tuple[tracin.TracIn, tuple[Tensor, Tensor]]:
    """A net in float64, and examples in three clumps whose labels are mixed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    states = [model.state_dict(), {k: 1.1 * v for k, v in model.state_dict().items()}]
    clumps = torch.randn(3, 4).double()[torch.arange(examples) % 3]
    inputs = clumps + 0.3 * torch.randn(examples, 4).double()
    run = tracin.TracIn(model, "cross_entropy", states, learning_rates="equal")
    return run, (inputs, torch.randint(3, (examples,)))


def hidden(run: tracin.TracIn, inputs: Tensor) -> Tensor:
    """What the last layer reads at the last checkpoint."""
    weights = run.checkpoints[-1].weights()
    return F.relu(inputs @ weights["0.weight"].T + weights["0.bias"])


def plainly(features: Tensor, labels: Tensor, limit: float) -> list[tuple[float, int, int]]:
    """(minus cosine, one, other) of each pair, in order."""
    centred = features - features.mean(0)
    found = {}
    for one in range(len(labels)):
        best, at = -2.0, -1
        for other in range(len(labels)):
            if labels[one] != labels[other]:
                cosine = float(F.cosine_similarity(centred[one], centred[other], dim=0))
                best, at = max((best, at), (cosine, other), key=lambda each: each[0])
        if best >= limit:
            found[min(one, at), max(one, at)] = best
    return sorted((-cosine, one, other) for (one, other), cosine in found.items())


@pytest.mark.parametrize("limit", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("memory", [1, 2000, 1 << 28])
def test_pairs_are_those_of_the_plain_way(limit: float, memory: int):
    run, (inputs, labels) = task()
    expected = plainly(hidden(run, inputs), labels, limit)

    found = conflicting_duplicates(run, (inputs, labels), cosine=limit, memory=memory)

    assert len(found) == len(expected) > 0
    assert found.positions.tolist() == [[one, other] for _, one, other in expected]
    assert np.allclose(found.cosines, [-minus for minus, _, _ in expected], rtol=1e-10)
    assert np.array_equal(found.labels, labels.numpy()[found.positions])
    assert (found.labels[:, 0] != found.labels[:, 1]).all()


@pytest.mark.parametrize("kind", [torch.Tensor.double, torch.Tensor.numpy, torch.Tensor.tolist])
def test_features_of_ones_own_take_the_place_of_the_last_layers(kind):
    run, (inputs, labels) = task()
    features = torch.randn(30, 5).double()
    features[7], labels[7], labels[3] = 2 * features[3], 1, 2

    found = conflicting_duplicates(run, (inputs, labels), features=kind(features), cosine=0.2)

    assert found.positions.tolist() == [
        [one, other] for _, one, other in plainly(features, labels, 0.2)
    ]
    assert [3, 7] in found.positions.tolist()


def test_equal_examples_under_two_labels_are_a_pair_once_and_batches_do_not_matter():
    run, (inputs, labels) = task()
    inputs[5], labels[5], labels[2] = inputs[2], 0, 1
    data = tracin.WithIds((inputs, labels), [f"n{each}" for each in range(30)])

    found = conflicting_duplicates(run, data, cosine=1.0)
    in_batches = conflicting_duplicates(run, data, cosine=1.0, batch_size=7)

    assert found.ids.tolist() == in_batches.ids.tolist() == [["n2", "n5"]]
    assert found.labels.tolist() == [[1, 0]]
    assert found.cosines.tolist() == [1.0]
    lines = str(found).splitlines()
    assert lines[0].startswith("1 pairs of near-duplicates with different labels among 30")
    assert lines[2].split() == ["n2", "1", "n5", "0", "1"]
    assert pa.table(found).column_names == list(found.columns())


def test_one_label_has_no_conflicts():
    run, (inputs, labels) = task()

    found = conflicting_duplicates(run, (inputs, 0 * labels))

    assert len(found) == 0
    assert str(found).startswith("0 pairs")
    assert found.columns()["id_1"].tolist() == []


@pytest.mark.parametrize("cosine", [0, 1.5, -0.5, "0.8", None, True, float("nan")])
def test_a_cosine_that_cannot_be_is_refused(cosine):
    run, train = task()

    with pytest.raises(QueryError, match="above 0 and up to 1"):
        conflicting_duplicates(run, train, cosine=cosine)


def test_features_and_memory_that_cannot_be_are_refused():
    run, train = task()

    with pytest.raises(DataError, match=r"one row per example, \[30, features\]; came \[29, 5\]"):
        conflicting_duplicates(run, train, features=torch.zeros(29, 5))
    with pytest.raises(DataError, match="array of numbers"):
        conflicting_duplicates(run, train, features=[["a"]] * 30)
    spoiled = torch.zeros(30, 5)
    spoiled[4, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="at position 4"):
        conflicting_duplicates(run, train, features=spoiled)
    with pytest.raises(QueryError, match="memory is a whole number"):
        conflicting_duplicates(run, train, memory=0)


def test_models_and_losses_that_do_not_fit_are_refused_with_the_way_out():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4).double())

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * self.weight

    _, (inputs, labels) = task()
    model = Scale()
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")

    with pytest.raises(UnsupportedModelError, match=r"pass features=\[train, features\]"):
        conflicting_duplicates(run, (inputs, labels))
    assert len(conflicting_duplicates(run, (inputs, labels), features=inputs))
    linear = nn.Linear(4, 1).double()
    other = tracin.TracIn(linear, "mse", [linear.state_dict()], learning_rates="equal")
    with pytest.raises(LossError, match="conflicting_duplicates compares the scores of classes"):
        conflicting_duplicates(other, (inputs, labels.double()))
