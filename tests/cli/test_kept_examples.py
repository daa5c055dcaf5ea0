"""What the command line keeps of examples, for a viewer that runs no code of the task's."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tracin import Shown, WithIds
from tracin.cli import kept_examples
from tracin.cli.kept_examples import SIDE, keep_examples
from tracin.cli.main import main
from tracin.cli.task import Task
from tracin.view import save_examples
from tracin.view.examples import read_pack, write_pack


def task_of(train, **more) -> Task:
    return Task(model=None, loss="mse", train=train, checkpoints=[], **more)


def pictured(count=10) -> Task:
    numbers = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return task_of((numbers, torch.arange(count) % 2))


def test_pictures_of_the_first_are_kept_and_what_is_left_out_is_said(tmp_path):
    said = keep_examples(pictured(), [7, 2, 7, 5, 1], tmp_path, 3, adds=False)

    pack = read_pack(tmp_path / "examples.parquet")
    assert said == f"3 examples of 4 to look at in tracin view: {tmp_path / 'examples.parquet'}"
    assert pack.positions.tolist() == [7, 2, 5]
    assert pack.pictures is not None
    with Image.open(io.BytesIO(pack.pictures[0] or b"")) as opened:
        found = np.asarray(opened)
    numbers = (pictured().train[0][7].permute(1, 2, 0) * 255).round().numpy()
    np.testing.assert_array_equal(found, numbers)  # small pictures are kept as they are


def test_large_pictures_are_made_smaller_and_the_file_is_capped(tmp_path, monkeypatch):
    large = task_of((torch.rand(4, 3, 600, 300), torch.arange(4)))
    keep_examples(large, range(4), tmp_path, 4, adds=False)
    pack = read_pack(tmp_path / "examples.parquet")
    assert pack.pictures is not None
    with Image.open(io.BytesIO(pack.pictures[0] or b"")) as opened:
        assert opened.size == (SIDE // 2, SIDE)

    monkeypatch.setattr(kept_examples, "LARGEST", 2 * len(pack.pictures[0] or b""))
    said = keep_examples(large, range(4), tmp_path, 4, adds=False)

    assert len(read_pack(tmp_path / "examples.parquet").positions) in (1, 2)
    assert "of 4 to look at" in said


def test_texts_and_columns_are_kept_as_the_task_shows_them(tmp_path):
    def show(example):
        return Shown(text=example, columns={"letters": len(example)})

    keep_examples(task_of(["what a film", "so so"], show=show), [1, 0], tmp_path, 9, adds=False)

    assert read_pack(tmp_path / "examples.parquet").texts == [
        "so so\nletters: 5",
        "what a film\nletters: 11",
    ]


def test_hostile_examples_are_kept_as_far_as_they_can_be(tmp_path):
    broken = Image.new("CMYK", (0, 0))
    shown = [
        Shown(image=torch.full((8, 8), float("nan")), text="nul\0 half \ud800"),
        Shown(image=np.zeros((2, 3, 4, 5)), text="no picture"),
        Shown(image=broken, text="0 x 0"),
        Shown(image=Image.new("1", (9, 9)), text="=1+1\u202e"),
        Shown(text="a" * 1_000_000),
    ]
    task = task_of(list(range(5)), show=lambda at: shown[at])

    said = keep_examples(task, range(5), tmp_path, 5, adds=False)

    pack = read_pack(tmp_path / "examples.parquet")
    assert said.startswith("5 examples to look at")
    assert pack.texts is not None
    assert pack.pictures is not None
    assert [one is None for one in pack.pictures] == [False, True, True, False, True]
    assert pack.texts[:4] == ["nul\0 half \\ud800", "no picture", "0 x 0", "=1+1\u202e"]
    assert len(pack.texts[4] or "") < 6000


def test_what_explains_is_added_to_a_ranking_of_the_same_data_alone(tmp_path):
    path = tmp_path / "examples.parquet"
    keep_examples(pictured(), [1, 2], tmp_path, 9, adds=False)
    keep_examples(pictured(), [2, 5], tmp_path, 9, adds=True)
    assert read_pack(path).positions.tolist() == [2, 5, 1]
    keep_examples(pictured(), [4], tmp_path, 9, adds=False)
    assert read_pack(path).positions.tolist() == [4]

    other = pictured()
    named = task_of(WithIds(other.train, [f"other {at}" for at in range(10)]))
    keep_examples(named, [3], tmp_path, 9, adds=True)
    assert read_pack(path).positions.tolist() == [3]


def test_other_data_with_the_same_ids_do_not_mix(tmp_path):
    keep_examples(task_of(["good", "bad", "fine"]), [0, 1], tmp_path, 9, adds=False)

    keep_examples(task_of(["good", "bad", "poor"]), [2], tmp_path, 9, adds=True)
    other = read_pack(tmp_path / "examples.parquet")
    of_earlier_version = replace(other, about={"kept_of": other.about["kept_of"]})
    write_pack(tmp_path / "examples.parquet", of_earlier_version)
    keep_examples(task_of(["good", "bad", "poor"]), [1], tmp_path, 9, adds=True)

    assert other.texts == ["poor"]
    assert read_pack(tmp_path / "examples.parquet").texts == ["bad", "poor"]


def test_data_that_look_different_each_time_are_known_by_their_ids(tmp_path):
    class Drawn(list):
        def __getitem__(self, position):
            return torch.rand(3, 8, 8)

    for position in (0, 1):
        keep_examples(task_of(Drawn([0, 1])), [position], tmp_path, 9, adds=True)

    assert read_pack(tmp_path / "examples.parquet").positions.tolist() == [1, 0]


def test_a_file_of_the_users_own_stays(tmp_path):
    path = save_examples(tmp_path, texts=["mine"])

    said = keep_examples(pictured(), [1], tmp_path, 9, adds=False)

    assert said == f"{path} holds examples of your own and stays as it is."
    assert read_pack(path).texts == ["mine"]


def test_a_damaged_file_is_written_again(tmp_path):
    (tmp_path / "examples.parquet").write_bytes(b"PAR1")

    assert keep_examples(pictured(), [1], tmp_path, 9, adds=True).startswith("1 example ")


def test_the_command_keeps_them_unless_it_is_told_not_to(tmp_path, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(each) for each in arguments])
        assert not stop.value.code
        return capsys.readouterr().out

    call("init", tmp_path)
    run, none, kept = tmp_path / "run.toml", tmp_path / "none", tmp_path / "kept"

    without = call("mislabelled", run, "--out", none, "--set", "output.examples=0")
    told = call("mislabelled", run, "--out", kept, "--set", "output.examples=20")

    assert "to look at" not in without
    assert not (none / "examples.parquet").exists()
    assert "20 examples of " in told
    assert "examples.parquet" not in call("report", kept, "--overwrite")  # it is no result
