"""Decisions by the page: kept at once, seen by other tabs, taken back, exported."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest
from served import saved

import tracin
from tracin.view import save_examples


def test_a_decision_is_kept_and_shown(client, tmp_path):
    answer = client.decide([1], "relabelled", 2)

    assert answer["rows"][0]["kind"] == "relabelled"
    assert answer["rows"][0]["label"]["value"] == 2
    assert (answer["decided"], answer["looked"], answer["wrong"]) == (1, 1, 1)
    assert tracin.Decisions.open(tmp_path / "results").new_labels.tolist() == [2]


def test_two_tabs_do_not_overwrite_each_other(client):
    client.decide([1], "wrong", seen=[0], tab="a")

    answer = client.decide([1], "right", seen=[0], tab="b", status=409)

    assert answer["rows"][0]["kind"] == "wrong"  # the other tab's, to be looked at
    assert "decided about elsewhere" in answer["error"]
    changed = client.get("/api/changes?since=0").json()
    assert [row["row"] for row in changed["rows"]] == [1]
    assert client.get(f"/api/changes?since={changed['seq']}").json()["rows"] == []


def test_undo_and_redo_by_the_page(client):
    client.decide([1], "wrong")
    client.decide([3], "right")

    assert client.post("/api/undo", json={"tab": "other"}).json()["rows"] == []
    assert client.post("/api/undo", json={"tab": "tab"}).json()["rows"][0]["row"] == 3
    assert client.post("/api/undo", json={"tab": "tab"}).json()["decided"] == 0
    redone = client.post("/api/redo", json={"tab": "tab"}).json()
    assert (redone["rows"][0]["row"], redone["rows"][0]["kind"]) == (1, "wrong")


def test_equal_texts_are_marked_together(tmp_path, opened):
    save_examples(saved(tmp_path), texts=["twin", "b", "c", "twin", "e", "f", "twin", "h"])
    client = opened(tmp_path)

    alike = client.get("/api/example?row=0").json()["alike"]
    rows = [0, *(one["row"] for one in alike)]
    answer = client.decide(rows, "wrong", seen=[0, *(one["seq"] for one in alike)])

    assert rows == [0, 3, 6]
    assert answer["decided"] == 3
    assert client.get("/api/example?row=1").json()["alike"] == []
    assert len(client.post("/api/undo", json={"tab": "tab"}).json()["rows"]) == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": [8]},
        {"rows": [-1]},
        {"rows": [True]},
        {"rows": "1"},
        {"rows": []},
        {"rows": [1, 1], "seen": [0, 0]},
        {"rows": list(range(8)) * 40},
        {"seen": [0, 0]},
        {"seen": None},
        {"seen": ["0"]},
        {"kind": "maybe"},
        {"kind": ["wrong"]},
        {"kind": "relabelled"},
        {"label": 2},
        {"kind": "relabelled", "label": "cat"},
        {"kind": "relabelled", "label": {}},
        {"tab": ""},
        {"tab": "x" * 65},
        {"tab": 7},
    ],
    ids=str,
)
def test_what_is_no_decision_is_refused_in_words_and_leaves_nothing(client, changed):
    body = {"rows": [1], "seen": [0], "kind": "wrong", "label": None, "tab": "tab", **changed}

    answer = client.post("/api/decide", json=body)

    assert answer.status_code == 400
    assert len(answer.json()["error"]) > 10
    assert client.viewer.log.revision == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 60_000, b'{"tab": NaN}'])
def test_bodies_that_are_no_objects_are_refused(client, body):
    assert client.post("/api/undo", content=body).status_code == 400


def test_exports_are_what_the_library_writes(client, tmp_path):
    client.decide([1], "relabelled", 2)
    client.decide([3], "wrong")
    got = {
        name: client.get(f"/api/export?format={name}")
        for name in ("csv", "parquet", "json", "label-studio")
    }

    assert [one["id"] for one in csv.DictReader(io.StringIO(got["csv"].text))] == ["101", "103"]
    assert pq.read_table(io.BytesIO(got["parquet"].content))["decision"].to_pylist() == [
        "relabelled",
        "wrong",
    ]
    assert json.loads(got["json"].text)[0]["new_label"] == 2
    assert len(json.loads(got["label-studio"].text)) == 2
    tracin.Decisions.open(tmp_path / "results").save(tmp_path / "decisions.csv")
    assert (tmp_path / "decisions.csv").read_bytes() == got["csv"].content
    for one in got.values():
        assert one.headers["content-disposition"].startswith("attachment; filename=")
        assert one.headers["x-content-type-options"] == "nosniff"
    assert client.get("/api/export?format=xlsx").status_code == 400


def test_a_log_that_cannot_be_written_to_is_said_so(client):
    client.viewer.log._db.execute("PRAGMA query_only=ON")

    answer = client.post(
        "/api/decide", json={"rows": [1], "seen": [0], "kind": "wrong", "tab": "tab"}
    )

    assert answer.status_code == 400
    assert "Nothing that was decided before is lost" in answer.json()["error"]
