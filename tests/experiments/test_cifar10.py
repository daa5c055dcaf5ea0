"""CIFAR-10 as in the paper's section 4.2: its parts, and the whole in its quick form."""

import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from experiments.cifar10_images import (
    CHECKSUM,
    RECORD,
    TEST_FILE,
    TRAIN_FILES,
    URL,
    human_labels,
    open_cifar10,
    records,
)
from experiments.cifar10_scores import at_each_checkpoint, in_one_pass
from experiments.cifar10_training import Recipe, cropped, new_net, one_epoch, rate_at, trained

from experiments import cifar10, cifar10_images
from tracin import open_checkpoints
from tracin.errors import DataError

SMALL = Recipe(depth=8, epochs=2, batch=5, every=1, is_augmented=True, seed=3)


@pytest.fixture
def few():
    random = torch.Generator().manual_seed(0)
    return torch.randn(10, 3, 32, 32, generator=random), torch.arange(10)


@pytest.mark.parametrize(
    ("epoch", "rate"), [(3, 0.02), (15, 0.1), (89, 0.1), (90, 0.01), (180, 1e-3), (240, 1e-4)]
)
def test_the_rate_follows_the_papers_schedule(epoch, rate):
    assert rate_at(epoch / 270) == pytest.approx(rate)


def test_a_crop_is_a_window_that_may_be_mirrored():
    padded = torch.arange(2 * 40 * 40 * 3.0).view(2, 40, 40, 3)
    found = cropped(
        padded, torch.tensor([0, 8]), torch.tensor([3, 8]), torch.tensor([False, True])
    ).permute(0, 2, 3, 1)

    assert torch.equal(found[0], padded[0, 0:32, 3:35])
    assert torch.equal(found[1], padded[1, 8:40, 8:40].flip(1))


def test_the_same_seed_trains_the_same_net(few):
    one, other = (trained(*few, SMALL).state_dict() for _ in range(2))

    assert all(torch.equal(one[name], other[name]) for name in one)


def test_checkpoints_have_the_rates_of_their_steps(few, tmp_path):
    trained(*few, SMALL, record=tmp_path / "checkpoints")

    found = [each.learning_rate for each in open_checkpoints(tmp_path / "checkpoints")]

    assert found == pytest.approx([rate_at(2 / 4), rate_at(4 / 4)])


def test_single_checkpoints_add_up_to_self_influence(few, tmp_path):
    folder = tmp_path / "checkpoints"
    trained(*few, SMALL, record=folder)
    rates = torch.tensor([each.learning_rate for each in open_checkpoints(folder)]).double()

    each = at_each_checkpoint(new_net(SMALL, "cpu"), few, folder, "cpu")
    whole = in_one_pass(new_net(SMALL, "cpu"), few, folder, "cpu")["TracIn, last layer"]

    torch.testing.assert_close(rates @ each, whole, rtol=1e-4, atol=0)


def test_records_of_the_binary_version():
    content = bytes([7, *range(256), *[0] * (3072 - 256)]) * 2

    found = records(content)

    assert found.shape == (2, 3073)
    assert found[:, 0].tolist() == [7, 7]
    with pytest.raises(DataError, match="records of 3073 bytes; 10 bytes came"):
        records(bytes(10))


@pytest.mark.parametrize("is_zip", [True, False])
def test_peoples_labels_are_read_without_running_code(tmp_path, is_zip):
    path, right = tmp_path / "CIFAR-10_human.pt", torch.arange(10)
    given = {"aggre_label": np.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 8, 5]), "other": np.arange(11) + 1}
    torch.save(given, path, _use_new_zipfile_serialization=is_zip)

    assert human_labels(path, "aggre_label", right).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 8]
    with pytest.raises(DataError, match=r"agree with 0% of CIFAR-10's.*another order"):
        human_labels(path, "other", right)
    with pytest.raises(DataError, match=r"no column 'worse_label'; it has aggre_label, other"):
        human_labels(path, "worse_label", right)


def test_peoples_labels_may_be_an_array(tmp_path):
    np.save(tmp_path / "labels.npy", np.arange(12))

    assert human_labels(tmp_path / "labels.npy", "", torch.arange(10)).tolist() == list(range(10))
    with pytest.raises(DataError, match=r"holds \[12\].*at least \[13\]"):
        human_labels(tmp_path / "labels.npy", "", torch.arange(13))


def test_a_file_that_holds_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    (tmp_path / "labels.pt").write_bytes(pickle.dumps(Evil(), protocol=2))

    with pytest.raises(DataError, match="cannot be read as labels"):
        human_labels(tmp_path / "labels.pt", "aggre_label", torch.arange(10))


@pytest.mark.usefixtures("data_folder")
def test_a_part_of_the_images_is_the_beginning_of_all():
    few, more = open_cifar10(3, 2), open_cifar10(20, 10)

    assert few.train.shape == (3, 3, 32, 32)
    assert torch.equal(few.train, more.train[:3])
    assert torch.equal(few.test_labels, more.test_labels[:2])
    assert few.about == "a subset of CIFAR-10: 3 training and 2 test images"


def test_the_archive_gives_all_parts_in_the_official_order(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        for number, name in enumerate((TEST_FILE, *reversed(TRAIN_FILES))):
            (tmp_path / name).write_bytes(bytes([number]) + bytes(RECORD - 1))
            archive.add(tmp_path / name, f"cifar-10-batches-bin/{name}")
    monkeypatch.delenv("TRACIN_DATA", raising=False)
    asked = []

    def downloaded(*words):
        asked.append(words)
        return tmp_path / "cifar.tar.gz"

    monkeypatch.setattr(cifar10_images, "downloaded", downloaded)

    found = open_cifar10(4)

    assert found.labels.tolist() == [5, 4, 3, 2]
    assert found.test_labels.tolist() == [0]
    assert found.test.shape == (1, 3, 32, 32)
    assert asked == [(URL, CHECKSUM)]


@pytest.mark.slow
@pytest.mark.usefixtures("data_folder")
def test_the_whole_runs_and_writes_its_findings(tmp_path):
    count = cifar10.QUICK[0]
    right = open_cifar10(count, 1).labels
    np.save(tmp_path / "people.npy", (right + (torch.arange(count) < 20)) % 10)
    words = ["--quick", "--folder", str(tmp_path), "--noisy-labels", str(tmp_path / "people.npy")]

    cifar10.main(words)

    found = (tmp_path / "quick" / "findings.md").read_text()
    for name in (*cifar10.DRAWN, cifar10.EQUAL, cifar10.PROJECTED, cifar10.END):
        assert found.count(f"| {name} | ") >= 2  # planted labels, and those of people
    for words in ("a subset of CIFAR-10", "| > 80 % |", "93.4 %", "| deer |", "reverse the order"):
        assert words in found.replace("A subset", "a subset")
    for figure in ("figure1a", "figure8", "people"):
        assert f"(cifar10-{figure}.png)" in found
        assert 0 < (tmp_path / "quick" / f"cifar10-{figure}.png").stat().st_size < 150_000


def test_without_augmentation_images_are_seen_as_they_are(few):
    images, labels = few
    padded = torch.nn.functional.pad(images, [4] * 4).permute(0, 2, 3, 1)
    plain = replace(SMALL, is_augmented=False)

    seen = list(one_epoch(padded, labels, plain, torch.Generator().manual_seed(0)))

    for batch, own in seen:
        assert torch.equal(batch, images[own])
    assert sorted(torch.cat([own for _, own in seen]).tolist()) == list(range(10))
