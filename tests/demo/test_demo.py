"""The demo does what it says: wrong labels come to the top, and correcting them helps."""

import pytest
import torch

pytest.importorskip("sklearn", reason="the demo's digits come with scikit-learn")
pytest.importorskip("matplotlib", reason="the demo draws a figure")
parquet = pytest.importorskip("pyarrow.parquet", reason="the demo writes Parquet")

from tracin.demo import run  # noqa: E402
from tracin.demo.pictures import Picture, side_by_side  # noqa: E402


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One demo, with one net instead of three behind each accuracy: its folder and its words."""
    folder = tmp_path_factory.mktemp("demo")
    passages: list[str] = []
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run(folder, passages.append, repeats=1)
    assert torch.get_rng_state().equal(before)
    assert torch.get_num_threads() == threads
    return folder, passages


def read(folder, name):
    return parquet.read_table(folder / f"{name}.parquet").to_pydict()


def test_it_leaves_a_figure_tables_and_checkpoints(ran):
    folder, _ = ran

    names = sorted(path.name for path in folder.iterdir())

    tables = ["accuracy.parquet", "explanation.parquet", "found.parquet", "suspects.parquet"]
    assert names == sorted(["checkpoints", "digits.png", "report.html", *tables])
    assert (folder / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((folder / "checkpoints").glob("*.safetensors"))) == 12


def test_its_report_shows_the_digits_and_what_was_found(ran):
    page = (ran[0] / "report.html").read_text()

    assert page.count("data:image/png;base64,") > 300
    assert "Which labels are wrong?" in page
    assert "How much is found by looking?" in page
    assert "Why did the model say this?" in page
    assert any("report.html" in passage for passage in ran[1])


def test_the_ranking_finds_far_more_wrong_labels_than_chance(ran):
    folder, _ = ran
    is_flipped = read(folder, "suspects")["is_flipped"]

    first_fifth = is_flipped[: len(is_flipped) // 5]

    assert len(is_flipped) == 1197
    assert sum(is_flipped) == 120
    assert sum(first_fifth) / sum(is_flipped) > 0.9


def test_the_right_labels_of_the_suspects_are_right(ran):
    table = read(ran[0], "suspects")

    is_wrong = [
        given != right
        for given, right in zip(table["given_labels"], table["right_label"], strict=True)
    ]

    assert is_wrong == table["is_flipped"]


def test_the_last_layers_share_is_less_than_the_whole(ran):
    table = read(ran[0], "suspects")

    pairs = zip(table["self_influence_last"], table["self_influence"], strict=True)

    assert all(last < whole for last, whole in pairs)


def test_correcting_what_was_found_raises_the_test_accuracy(ran):
    table = read(ran[0], "accuracy")

    reached = dict(zip(table["labels"], table["test_accuracy"], strict=True))

    assert reached["relabelled"] > reached["noisy"]
    assert reached["right"] > 0.95


def test_a_mistake_is_explained_by_proponents_and_opponents(ran):
    table = read(ran[0], "explanation")

    kinds = list(zip(table["kind"], table["rank"], strict=True))

    assert kinds == [(kind, rank) for kind in ("proponent", "opponent") for rank in (1, 2, 3)]
    assert all(score > 0 for score in table["score"][:3])
    assert all(score < 0 for score in table["score"][3:])


def test_the_story_shows_the_other_scores_and_says_what_to_do_next(ran):
    story = "\n".join(ran[1])

    for words in ("self-influence", "loss", "EL2N", "random", "AUROC", "Proponents", "Opponents"):
        assert words in story
    assert "tracin init" in ran[1][-1]
    assert story.isascii()


def test_a_second_run_replaces_the_first_and_no_one_elses_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tracin.demo.training.EPOCHS", 3)
    run(tmp_path, lambda _: None, repeats=1)
    before = read(tmp_path, "suspects")
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")

    run(tmp_path, lambda _: None, repeats=1)

    assert read(tmp_path, "suspects") == before
    assert (tmp_path / "checkpoints" / "notes.txt").read_text() == "mine"


def test_pictures_stand_side_by_side_over_their_captions():
    light, dark = torch.zeros(1, 2), torch.ones(1, 2)

    drawn = side_by_side([Picture(dark, ("dark",)), Picture(light, ("pale", "one"))], indent="")

    assert drawn.splitlines() == ["@@@@", "dark   pale", "       one"]
