"""Decisions opened again: tables, files of other tools, and data to retrain with."""

import csv
import json
import sqlite3
from contextlib import closing

import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ranking import GIVEN, saved
from torch.utils.data import Dataset

import tracin
from tracin import DecisionError, OutputError
from tracin.decisions.cells import Cells, as_label
from tracin.decisions.ranked_table import ranked_table_in

TRAIN = torch.arange(8.0)[:, None], torch.tensor(GIVEN)


def csv_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path)
    tracin.Decisions.decide(tmp_path, 1, "relabelled", 2)
    tracin.Decisions.decide(tmp_path, 3, "wrong")
    tracin.Decisions.decide(tmp_path, 6, "right")
    return tmp_path


def test_decisions_are_columns_in_the_order_of_the_data(folder):
    decisions = tracin.Decisions.open(folder)

    assert len(decisions) == 3
    assert decisions.ids.tolist() == [101, 103, 106]
    assert decisions.kinds.tolist() == ["relabelled", "wrong", "right"]
    assert decisions.new_labels.tolist() == [2, None, None]
    assert str(decisions).startswith("3 decided: 1 wrong, 1 right, 1 relabelled\n")
    assert polars.DataFrame(decisions)["given_label"].to_list() == [1, 0, 0]


def test_where_nothing_was_decided_nothing_is_written(tmp_path):
    before = sorted(saved(tmp_path).iterdir())

    decisions = tracin.Decisions.open(tmp_path)

    assert len(decisions) == 0
    assert decisions.relabelled(TRAIN)[1].tolist() == GIVEN
    assert decisions.columns()["id"].tolist() == []
    assert sorted(tmp_path.iterdir()) == before


def test_relabelled_data_has_the_new_labels_and_lacks_what_is_wrong(folder):
    decisions = tracin.Decisions.open(folder)

    inputs, labels = decisions.relabelled(TRAIN)
    every = decisions.relabelled(TRAIN, keep_wrong=True)

    assert labels.tolist() == [0, 2, 2, 1, 2, 0, 1]
    assert inputs[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert every[1].tolist() == [0, 2, 2, 0, 1, 2, 0, 1]
    assert TRAIN[1].tolist() == GIVEN


def test_datasets_and_dicts_are_relabelled_too(folder):
    class Some(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, position):
            return {"x": TRAIN[0][position], "labels": GIVEN[position]}

    found = tracin.Decisions.open(folder).relabelled(Some(), key="labels")

    assert [one["labels"] for one in (found[at] for at in range(len(found)))] == [
        0,
        2,
        2,
        1,
        2,
        0,
        1,
    ]


def test_data_other_than_was_ranked_is_refused(folder):
    decisions = tracin.Decisions.open(folder)
    changed = TRAIN[0], torch.tensor([0, 1, 1, *GIVEN[3:]])

    with pytest.raises(DecisionError, match="label at position 2 is 1, and was 2"):
        decisions.relabelled(changed)
    with pytest.raises(DecisionError, match="it has 7 labels, and 8 were ranked"):
        decisions.relabelled((TRAIN[0][:7], TRAIN[1][:7]))


def test_targets_that_are_numbers_are_relabelled(tmp_path):
    saved(tmp_path, given_labels=[0.5 * one for one in GIVEN], suggested_labels=[0.0] * 8)
    tracin.Decisions.decide(tmp_path, 1, "relabelled", 0.25)

    found = tracin.Decisions.open(tmp_path).relabelled((TRAIN[0], TRAIN[1] * 0.5))

    assert found[1].tolist() == [0.0, 0.25, *(0.5 * one for one in GIVEN[2:])]


def test_a_ranking_of_some_examples_or_of_texts_keeps_its_mended_columns(tmp_path):
    texts = [f"class {one}" for one in GIVEN]
    saved(tmp_path / "texts", given_labels=texts, suggested_labels=texts)
    saved(tmp_path / "some", positions=[2 * at for at in range(8)])
    tracin.Decisions.decide(tmp_path / "texts", 1, "relabelled", "class 2")
    tracin.Decisions.decide(tmp_path / "some", 14, "wrong")

    of_texts, of_some = (tracin.Decisions.open(tmp_path / name) for name in ("texts", "some"))

    assert of_texts.mended["label"].tolist()[:3] == ["class 0", "class 2", "class 2"]
    assert of_some.mended["keep"].tolist() == [True] * 7 + [False]
    with pytest.raises(DecisionError, match="texts, and training data has numbers"):
        of_texts.relabelled(TRAIN)
    with pytest.raises(DecisionError, match="some of the training examples alone"):
        of_some.relabelled(TRAIN)


def test_files_by_their_suffix(folder, tmp_path):
    decisions = tracin.Decisions.open(folder)
    for suffix in ("csv", "json", "parquet"):
        decisions.save(tmp_path / f"out/decisions.{suffix}")
    rows = csv_rows(tmp_path / "out/decisions.csv")

    assert [row["new_label"] for row in rows] == ["2", "", ""]
    assert rows[0]["decided_at"].endswith("+00:00")
    assert json.loads((tmp_path / "out/decisions.json").read_text())[0]["new_label"] == 2
    assert pq.read_table(tmp_path / "out/decisions.parquet")["id"].to_pylist() == [101, 103, 106]
    with pytest.raises(OutputError, match=r"ends in '.xlsx', .* End it in one of .parquet, .csv"):
        decisions.save(tmp_path / "decisions.xlsx")


def test_label_studio_gets_tasks_with_annotations(folder, tmp_path):
    tracin.Decisions.open(folder).save_label_studio(tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())

    choices = [
        {one["from_name"]: one["value"]["choices"] for one in task["annotations"][0]["result"]}
        for task in tasks
    ]
    assert choices == [
        {"decision": ["relabelled"], "label": ["2"]},
        {"decision": ["wrong"]},
        {"decision": ["right"], "label": ["0"]},
    ]
    assert tasks[0]["data"] == {"id": "101", "position": 1, "given_label": "1"}


def test_a_spreadsheet_runs_no_formula(tmp_path):
    texts = ["=1+1", "+a", "-a", "@a", "\tb", "\rc", "fine", "x"]
    saved(tmp_path, given_labels=texts, suggested_labels=texts, ids=[f"={at}" for at in range(8)])
    for position in range(8):
        tracin.Decisions.decide(tmp_path, position, "relabelled", texts[position])

    tracin.Decisions.open(tmp_path).save(tmp_path / "decisions.csv")
    rows = csv_rows(tmp_path / "decisions.csv")

    for name in ("id", "given_label", "new_label"):
        assert not any(row[name][0] in "=+-@\t\r" for row in rows)
    assert rows[6]["new_label"] == "fine"


def test_numbers_below_zero_stay_numbers_in_csv(tmp_path):
    saved(tmp_path, given_labels=[-1] * 8, suggested_labels=[-1] * 8)
    tracin.Decisions.decide(tmp_path, 0, "right")
    tracin.Decisions.open(tmp_path).save(tmp_path / "decisions.csv")

    assert csv_rows(tmp_path / "decisions.csv")[0]["given_label"] == "-1"


def test_a_position_that_is_not_there_is_refused(folder):
    with pytest.raises(DecisionError, match=r"Position 8 is not in .*, which holds 8 examples"):
        tracin.Decisions.decide(folder, 8, "wrong")


@pytest.mark.parametrize("name", ["results", "."])
def test_a_run_folder_and_its_results_are_the_same(tmp_path, name):
    saved(tmp_path / "results")

    assert ranked_table_in(tmp_path / name).path.name == "mislabelled.parquet"
    assert (
        ranked_table_in(tmp_path / "results" / "mislabelled.parquet").log.parent.name == "results"
    )


def test_the_order_of_the_file_is_the_ranking(tmp_path):
    table = ranked_table_in(saved(tmp_path, positions=[7, 6, 5, 4, 3, 2, 1, 0]))

    assert table.positions.tolist() == list(range(8))
    assert table.score("loss")[table.ranked].tolist() == pytest.approx(
        [0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1]
    )
    assert table.ids.array().tolist() == [107 - at for at in range(8)]
    assert table.scores == ("loss", "margin")


def test_an_index_is_a_table_too(tmp_path):
    model = torch.nn.Linear(3, 2)
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[0.1])
    train = torch.randn(20, 3), torch.arange(20) % 2
    run.index(train, tmp_path / "index", tracin.Projection(dim=16), progress=False)

    tracin.Decisions.decide(tmp_path, 4, "relabelled", 1)

    assert ranked_table_in(tmp_path).suggested is None
    assert tracin.Decisions.open(tmp_path).relabelled(train)[1][4] == 1
    assert tracin.Index.open(tmp_path / "index").verify().is_sound


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"positions": [0] * 8}, "must give each example a position of its own"),
        ({"ids": None}, r"has no column 'ids'"),
    ],
)
def test_a_table_of_something_else_is_explained(tmp_path, changed, words):
    with pytest.raises(DecisionError, match=words):
        ranked_table_in(saved(tmp_path, **changed))


def test_a_folder_without_a_ranking_says_what_makes_one(tmp_path):
    with pytest.raises(DecisionError, match=r"holds no ranking: .* Run tracin mislabelled"):
        tracin.Decisions.open(tmp_path)
    (tmp_path / "mislabelled.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(DecisionError, match="cannot be read as a Parquet file"):
        tracin.Decisions.open(tmp_path)
    with pytest.raises(DecisionError, match="holds no ranking"):
        tracin.Decisions.open("a\0b")


@pytest.mark.parametrize("value", [1.5, True, None, "cat", "", 1 << 60, float("nan")])
def test_a_new_class_is_a_whole_number(value):
    with pytest.raises(DecisionError, match="A new label is a whole number"):
        as_label(value, Cells(np.array(GIVEN)))


def test_a_new_label_is_of_the_kind_of_the_others():
    texts = Cells.of(pa.chunked_array([["cat", "dog"]]))

    assert as_label("2", Cells(np.array(GIVEN))) == 2
    assert as_label("0.5", Cells(np.array([0.1]))) == 0.5
    assert as_label("2", texts) == "2"
    for value in ("", "x" * 201, 2):
        with pytest.raises(DecisionError, match="a text of 1 to 200 characters"):
            as_label(value, texts)


@pytest.mark.parametrize("label", [2.5, float("nan"), True, "cat", [2]], ids=repr)
def test_a_program_decides_for_a_label_of_the_data_s_kind_or_is_refused(tmp_path, label):
    saved(tmp_path)

    with pytest.raises(DecisionError, match=r"A new label is a whole number, as those of the data"):
        tracin.Decisions.decide(tmp_path, 1, "relabelled", label)

    assert len(tracin.Decisions.open(tmp_path)) == 0


def test_a_program_decides_by_numbers_of_numpy(tmp_path):
    saved(tmp_path)

    tracin.Decisions.decide(tmp_path, np.int64(1), "relabelled", np.int64(2))  # pyright: ignore

    assert tracin.Decisions.open(tmp_path).relabelled(TRAIN)[1].tolist() == [0, 2, *GIVEN[2:]]


@pytest.mark.parametrize("position", [True, 1.0, None, "1", 99], ids=repr)
def test_a_position_is_a_whole_number_of_the_data(tmp_path, position):
    saved(tmp_path)

    with pytest.raises(DecisionError, match=r"Position .* is not in .*, which holds 8 examples"):
        tracin.Decisions.decide(tmp_path, position, "wrong")


@pytest.mark.parametrize("label", ["2.5", "NaN"])
def test_a_label_of_another_kind_in_the_log_is_never_rounded(tmp_path, label):
    saved(tmp_path)
    tracin.Decisions.decide(tmp_path, 1, "relabelled", 2)
    with closing(sqlite3.connect(tmp_path / "decisions.sqlite")) as log, log:
        log.execute("UPDATE log SET label = ?", (label,))

    with pytest.raises(DecisionError, match="A new label is a whole number"):
        tracin.Decisions.open(tmp_path)
