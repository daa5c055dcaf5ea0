"""The ImageNet experiment runs on a few real images, and its parts do what they say."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from experiments.imagenette import imagenette_of, in_tar
from experiments.large_index import Mixtures
from experiments.two_sided import Factors, TwoSided, self_influence_error
from PIL import Image
from torch import nn

import tracin
from experiments import imagenet, large_index


@pytest.fixture
def gradients():
    """A layer, examples, and the factors of their gradients."""
    torch.manual_seed(0)
    layer = nn.Linear(9, 5).double()
    inputs, labels = torch.randn(7, 9).double(), torch.randint(0, 5, (7,))
    return layer, (inputs, labels), Factors.of(layer.state_dict(), inputs, labels)


def test_factors_are_the_gradients(gradients):
    layer, data, factors = gradients
    run = tracin.TracIn(layer, "cross_entropy", [layer.state_dict()], learning_rates=[1.0])

    torch.testing.assert_close(factors.dot(factors), run.influence(data, data).double())
    torch.testing.assert_close(factors.squared_lengths(), factors.dot(factors).diagonal())


def test_a_two_sided_projection_is_right_on_average_and_errs_as_theory_says(gradients):
    _, _, factors = gradients
    factors = Factors(factors.left.float(), factors.right.float())
    sides, seeds = (6, 4), 4000
    dots = []
    for seed in range(seeds):
        rows = TwoSided.random(sides, factors, seed).rows(factors)
        dots.append(rows @ rows.T)
    dots, known = torch.stack(dots), factors.dot(factors)

    assert rows.shape == (7, 24)
    assert ((dots.mean(0) - known).abs() <= 5 * dots.std(0) / seeds**0.5).all()
    spread = (dots.std(0) / known).diagonal().mean()
    assert float(spread) == pytest.approx(self_influence_error(sides), rel=0.1)


def test_recall_counts_the_highest():
    known = torch.arange(40.0)[:, None]
    assert imagenet.recall(known, known) == 1
    assert imagenet.recall(-known, known) == 0
    assert imagenet.recall(known.roll(5, 0), known) == 0.5


def test_no_two_synthetic_examples_are_equal():
    mix = Mixtures(torch.randn(9, 3), torch.arange(9))
    features, labels = mix(list(range(9 * 4)))
    assert len(features.unique(dim=0)) == 36
    assert labels.tolist() == list(range(9)) * 4


def test_the_makers_archive_is_read_as_the_folder_is(tmp_path):
    path = tmp_path / "imagenette2-160.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, side in (
            ("train/n02102040/b", 90),
            ("train/n01440764/a", 80),
            ("val/n03888257/c", 64),
        ):
            content = io.BytesIO()
            Image.fromarray(np.full((side, 64, 3), side, np.uint8)).save(content, "JPEG")
            member = tarfile.TarInfo(f"imagenette2-160/{name}.JPEG")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)

    found = imagenette_of(in_tar(path))

    assert found.train_images.shape == (2, 64, 64, 3)
    assert found.train_labels.tolist() == [0, 217]
    assert found.train_images.float().mean((1, 2, 3)).tolist() == pytest.approx([80, 90], abs=2)
    assert found.val_labels.tolist() == [701]


def test_a_file_of_another_class_is_named():
    with pytest.raises(tracin.DataError, match=r"got train/n99999999/a\.JPEG\. Remove the file"):
        imagenette_of(iter([("train/n99999999/a.JPEG", b"")]))


@pytest.mark.slow
def test_quick(data_folder, tmp_path, monkeypatch):
    # Processes of their own, whose start costs more than their work, only measure memory.
    monkeypatch.setattr(
        large_index,
        "in_new_process",
        lambda work, large: work(pickle.loads(pickle.dumps(large))),
    )

    imagenet.main(["--quick", "--folder", str(tmp_path)])

    found = (tmp_path / "quick" / "findings.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in found.splitlines()
        if line.startswith("|")
    ]
    errors = {(row[0], row[1]): row[2:] for row in rows if row[0].startswith(("index", "two-sid"))}
    theirs = errors["two-sided, 46 x 32 (the paper's)", "1,472"]
    ours = errors["index of tracin", "1,472"]
    assert float(ours[0]) < float(theirs[0]) / 3
    assert errors["index of tracin", "2,280"] == ["0.000", *["1.000"] * 4, "0.000"]
    assert "1,000 x 3 rows" in found
    assert "The filter takes out" in found
    for name in ("projections", "neighbours"):
        assert 0 < (tmp_path / "quick" / f"imagenet-{name}.png").stat().st_size < 150_000
    assert not (tmp_path / "quick" / "large-1000.index").exists()
