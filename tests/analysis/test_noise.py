"""Planted wrong labels: each kind against the plain way, and what is refused."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tracin
from tracin.analysis import (
    ConfusionNoise,
    HighestWrong,
    NoisyLabels,
    UniformWrong,
    noisy_labels,
)
from tracin.analysis.edited_data import kept_examples, label_column, relabelled_examples
from tracin.errors import DataError, LabelError, NonFiniteError, QueryError


def labels_of(examples, classes, seed=1):
    return torch.randint(0, classes, (examples,), generator=torch.Generator().manual_seed(seed))


def test_the_highest_scoring_wrong_class_is_that_of_a_plain_search():
    logits = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    labels = labels_of(60, 4)

    noisy = noisy_labels(labels, HighestWrong(logits), fraction=1.0, seed=0)

    for example in range(60):
        wrong = [each for each in range(4) if each != labels[example]]
        assert int(noisy.labels[example]) == max(wrong, key=lambda at: float(logits[example, at]))
    assert noisy.is_noisy.all()
    assert noisy.right.equal(labels)


@pytest.mark.parametrize(
    "noise",
    [
        HighestWrong(torch.randn(200, 10, generator=torch.Generator().manual_seed(0))),
        HighestWrong(np.random.default_rng(0).random((200, 10))),
        UniformWrong(10),
        ConfusionNoise(torch.ones(10, 10)),
    ],
)
@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray, list])
def test_the_mask_marks_the_changed_labels_and_no_others(noise, kind):
    labels = labels_of(200, 10)
    given = {torch.Tensor: labels, np.ndarray: labels.numpy(), list: labels.tolist()}[kind]
    before = labels.clone()

    noisy = noisy_labels(given, noise, fraction=0.1, seed=2)

    assert int(noisy.is_noisy.sum()) == 20
    assert (noisy.labels != before).equal(noisy.is_noisy)
    assert labels.equal(before)
    assert ((noisy.labels >= 0) & (noisy.labels < 10)).all()


def test_the_seed_decides_all_of_it():
    labels = labels_of(100, 5)
    generator = torch.Generator().manual_seed(5)

    first, same, other = (noisy_labels(labels, UniformWrong(5), 0.3, seed=at) for at in (5, 5, 6))
    by_generator = noisy_labels(labels, UniformWrong(5), 0.3, seed=generator)

    assert first.labels.equal(same.labels)
    assert first.labels.equal(by_generator.labels)
    assert not first.is_noisy.equal(other.is_noisy)
    assert (first.seed, by_generator.seed) == (5, None)


def test_uniform_noise_spreads_over_all_wrong_classes():
    noisy = noisy_labels([1] * 4000, UniformWrong(5), 1.0, seed=0)

    counts = torch.bincount(noisy.labels, minlength=5)

    assert counts[1] == 0
    assert all(abs(int(counts[at]) - 1000) < 5 * 1000**0.5 for at in (0, 2, 3, 4))


def test_confusion_noise_follows_the_matrix_without_its_diagonal():
    matrix = np.array([[90, 3, 1], [0, 50, 0], [5, 5, 90]])
    labels = torch.tensor([0] * 4000 + [1] * 100 + [2] * 100)

    noisy = noisy_labels(labels, ConfusionNoise(matrix), 0.9, seed=0)

    of_first = noisy.labels[noisy.is_noisy & (labels == 0)]
    assert float((of_first == 1).double().mean()) == pytest.approx(0.75, abs=0.04)
    assert not noisy.is_noisy[labels == 1].any()


def test_the_record_says_what_was_done():
    noisy = noisy_labels([0, 0, 1, 1], UniformWrong(2), 0.5, seed=0)

    assert str(noisy).startswith("2 of 4 labels made wrong: any wrong class, ")
    assert sum(noisy.columns()["examples"]) == 2
    assert len(noisy) == 4
    assert noisy.fixed(torch.arange(4)).tolist() == [0, 0, 1, 1]


class Pairs(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, position):
        return {"x": torch.tensor(float(position)), "label": position % 2}


def test_labels_go_into_data_of_any_kind():
    noisy = noisy_labels([0, 1, 0, 1], UniformWrong(2), 1.0, seed=0)
    inputs, labels = torch.arange(4.0), torch.tensor([0, 1, 0, 1])

    columns = noisy.put_into((inputs, labels))
    named = noisy.put_into({"x": inputs, "label": labels.int()}, key="label")
    tensors = noisy.put_into(TensorDataset(inputs, labels))
    fetched = noisy.put_into(Pairs(), key="label")
    with_ids = noisy.put_into(tracin.WithIds((inputs, labels), list("abcd")))
    listed = noisy.put_into([(at, at % 2) for at in range(4)])

    assert columns[1].tolist() == [1, 0, 1, 0]
    assert columns[0] is inputs or columns[0].equal(inputs)
    assert named["label"].dtype == torch.int32
    assert named["label"].tolist() == [1, 0, 1, 0]
    assert isinstance(tensors, TensorDataset)
    assert tensors.tensors[1].tolist() == [1, 0, 1, 0]
    assert [fetched[at]["label"] for at in range(4)] == [1, 0, 1, 0]
    assert type(fetched[0]["label"]) is int
    assert list(with_ids.ids) == list("abcd")
    assert [int(with_ids[at][1]) for at in range(4)] == [1, 0, 1, 0]
    assert [listed[at] for at in range(4)] == [(0, 1), (1, 0), (2, 1), (3, 0)]
    assert labels.tolist() == [0, 1, 0, 1]


def test_examples_are_kept_in_data_of_any_kind():
    inputs, labels, kept = torch.arange(4.0), torch.tensor([0, 1, 2, 3]), torch.tensor([1, 3])

    columns = kept_examples((inputs, labels), kept)
    tensors = kept_examples(TensorDataset(inputs, labels), kept)
    fetched = kept_examples(Pairs(), kept)
    with_ids = kept_examples(tracin.WithIds((inputs, labels), list("abcd")), kept)

    assert columns[1].tolist() == [1, 3]
    assert tensors.tensors[0].tolist() == [1.0, 3.0]
    assert [float(fetched[at]["x"]) for at in range(2)] == [1.0, 3.0]
    assert list(with_ids.ids) == ["b", "d"]
    assert label_column((inputs, labels)).tolist() == [0, 1, 2, 3]
    assert label_column(Pairs(), "label").tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "noise", "fraction", "error", "words"),
    [
        ([0, 1], HighestWrong([[1.0, 2.0]]), 0.1, DataError, r"scores \[1, 2\] and labels \[2\]"),
        ([0, 0], HighestWrong([[1.0], [2.0]]), 0.1, DataError, "at least two classes"),
        ([0.0], HighestWrong([[1.0, 2.0]]), 0.1, DataError, "whole number per example"),
        ([0, 2], UniformWrong(2), 0.1, LabelError, "0 to 1, but example 1 has 2. Number"),
        ([0], HighestWrong([[1.0, np.inf]]), 0.1, NonFiniteError, "scores of example 0"),
        ([0], UniformWrong(2), 10, QueryError, "10 was given. Write 10 % as 0.1"),
        ([0, 1], ConfusionNoise([[1, 1], [0, 1]]), 1.0, QueryError, "only 1 of the 2 examples"),
        ([0], ConfusionNoise([[1, -1], [0, 1]]), 1.0, DataError, "that are not negative"),
        ([0], ConfusionNoise([[1, 1, 1], [0, 1, 1]]), 1.0, DataError, r"\[2, 3\] came"),
    ],
)
def test_labels_that_cannot_be_made_wrong_are_refused(labels, noise, fraction, error, words):
    with pytest.raises(error, match=words):
        noisy_labels(labels, noise, fraction, seed=0)


def test_one_class_has_no_wrong_label():
    with pytest.raises(QueryError, match="at least 2; 1 was given"):
        UniformWrong(1)


def test_data_that_cannot_be_relabelled_is_refused():
    labels = torch.tensor([0, 1])
    pairs = torch.zeros(2, 3), labels

    with pytest.raises(DataError, match=r"expected at key='label', but .* has \[0, 1\]"):
        relabelled_examples(pairs, labels, "label")
    with pytest.raises(DataError, match="is a Tensor, which has no parts"):
        relabelled_examples(torch.zeros(2, 3), labels)
    with pytest.raises(DataError, match="holds 2 examples, and 3 labels came"):
        relabelled_examples(pairs, torch.zeros(3).long())
    with pytest.raises(DataError, match="Pass its dataset"):
        relabelled_examples(DataLoader(TensorDataset(*pairs)), labels)


def test_labels_in_a_column_stay_in_a_column():
    noisy = noisy_labels([0, 1, 2], UniformWrong(3), fraction=1.0, seed=0)

    labels = noisy.put_into((torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.int64)))[1]

    assert labels.tolist() == noisy.labels[:, None].tolist()


class Named(Dataset):
    """Two examples with a label of any kind."""

    def __init__(self, label):
        self.label = label

    def __len__(self):
        return 2

    def __getitem__(self, position):
        return torch.zeros(1), self.label


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (torch.eye(2), r"has shape \[2\]. Of one-hot labels .* pass labels.argmax\(1\)"),
        (torch.zeros(2, dtype=torch.uint8), "torch.uint8, which cannot hold the class 30"),
        (np.zeros((2, 3)), r"has shape \[3\]"),
        (["cat", "dog"], "a number, but that of train is a str"),
    ],
)
def test_classes_are_put_only_where_classes_were(old, message):
    noisy = NoisyLabels(
        torch.tensor([300, 301]), torch.zeros(2).long(), torch.ones(2).bool(), "", 1.0, 0
    )

    with pytest.raises(DataError, match=message):
        noisy.put_into((torch.zeros(2, 1), old))
    with pytest.raises(DataError, match=message):
        noisy.put_into(Named(old[0]))[0]


@pytest.mark.parametrize("label", [1.7, "1", torch.tensor(1.7)])
def test_labels_of_a_dataset_are_not_rounded(label):
    with pytest.raises(DataError, match="one whole number per example, but a label of train is"):
        label_column(Named(label))


@pytest.mark.parametrize(
    ("labels", "noise", "seed", "error", "message"),
    [
        ([0, 1], UniformWrong, 0, QueryError, "noise says how wrong labels are chosen"),
        ([0, 1], UniformWrong(2), None, QueryError, "seed is a whole number or a torch.Generator"),
        (["a", "b"], UniformWrong(2), 0, DataError, "one whole number per example.*a list came"),
    ],
)
def test_other_arguments_are_refused(labels, noise, seed, error, message):
    with pytest.raises(error, match=message):
        noisy_labels(labels, noise, seed=seed)
