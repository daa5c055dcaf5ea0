"""What explains a row, by an index alone: right, ahead of the person, and broken off in time."""

import threading
import time

import numpy as np
import pytest
import torch
from served import saved

import tracin
from tracin import IndexingError
from tracin.decisions.ranked_table import ranked_table_in
from tracin.view.explainer import Explainer
from tracin.view.viewer import found_index

ROWS = 60


def trained():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, 5, generator=generator)
    labels = torch.randint(0, 3, (ROWS,), generator=generator)
    inputs[7], labels[7] = inputs[41], labels[41]  # one example twice
    torch.manual_seed(0)
    models = [torch.nn.Linear(5, 3).state_dict() for _ in range(2)]
    run = tracin.TracIn(torch.nn.Linear(5, 3), "cross_entropy", models, learning_rates=[0.1, 0.2])
    return run, (inputs, labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run, train = trained()
    run.find_mislabelled(train).save(folder / "results" / "mislabelled.parquet")
    projection = tracin.Projection(dim=400)
    run.index(train, folder / "index", projection, shard_size=16, progress=False)
    return folder


@pytest.fixture
def explainer(folder):
    explainer = Explainer(str(folder / "index"), ranked_table_in(folder))
    yield explainer
    explainer.close()


def test_the_index_beside_the_results_is_found(folder):
    assert found_index(ranked_table_in(folder)) == str(folder / "index")
    assert found_index(ranked_table_in(folder / "index")) == str(folder / "index")


def test_a_page_explains_a_row_as_the_scores_do(folder, opened):
    client = opened(folder)
    run, train = trained()
    scores = run.influence(train, tuple(column[[12]] for column in train))[:, 0]
    scores[12] = -torch.inf

    answer = client.get("/api/why?row=12&k=5").json()

    order = scores.argsort(descending=True, stable=True)[:5]
    assert [hit["of"]["position"] for hit in answer["proponents"]] == order.tolist()
    assert [hit["score"] for hit in answer["proponents"]] == pytest.approx(
        scores[order].tolist(), rel=1e-2
    )
    for hit in answer["proponents"] + answer["opponents"]:
        assert hit["of"]["row"] != 12
        assert sum(hit["by_checkpoint"]) == pytest.approx(hit["score"], rel=1e-5)
    assert "recall@" in answer["note"]
    assert len(answer["checkpoints"]) == 2


def test_the_same_example_again_is_offered_for_marking_together(folder, opened):
    client = opened(folder)

    assert client.get("/api/why?row=7").json()["alike"] == [{"row": 41, "seq": 0}]
    assert client.get("/api/why?row=12").json()["alike"] == []


def test_a_page_that_was_named_ahead_is_one_search(explainer, monkeypatch):
    explainer.explained(0).result(60)
    asked = []
    found = tracin.Index.explain_rows

    def counting(index, positions, *arguments, **options):
        asked.append(len(positions))
        return found(index, positions, *arguments, **options)

    monkeypatch.setattr(tracin.Index, "explain_rows", counting)
    explainer.ahead(range(10, 40))
    while not (explainer._running or asked):
        time.sleep(0.001)
    answers = [explainer.explained(row).result(60) for row in range(10, 40)]

    assert asked == [30]
    assert len(answers) == 30
    assert explainer.explained(20).done()


class Held:
    """An index whose searches wait until they are let go, or stopped."""

    def __init__(self, monkeypatch):
        self.asked, self.stopped = [], []
        self.begun, self.goes_on = threading.Semaphore(0), threading.Event()
        found = tracin.Index.explain_rows

        def held(index, positions, k, *, is_stopped, **options):
            self.asked.append([int(one) for one in positions])
            self.begun.release()
            while not self.goes_on.wait(0.01):
                if is_stopped():
                    self.stopped.append(self.asked[-1])
                    return None
            return found(index, positions, k, is_stopped=None, **options)

        monkeypatch.setattr(tracin.Index, "explain_rows", held)


def test_a_row_that_is_asked_for_breaks_off_the_page_which_goes_on_afterwards(
    explainer, monkeypatch
):
    held = Held(monkeypatch)
    explainer.ahead([1, 2, 3])
    held.begun.acquire()

    single = explainer.explained(50)
    held.begun.acquire()
    held.goes_on.set()

    assert single.result(60).proponents
    assert explainer.explained(2).result(60).proponents
    assert held.stopped == [[1, 2, 3]]
    assert held.asked == [[1, 2, 3], [50], [1, 2, 3]]


def test_a_new_page_replaces_the_one_before(explainer, monkeypatch):
    held = Held(monkeypatch)
    explainer.ahead([1, 2, 3])
    held.begun.acquire()

    explainer.ahead([4, 5])
    held.begun.acquire()
    held.goes_on.set()
    explainer.explained(5).result(60)

    assert held.asked == [[1, 2, 3], [4, 5]]


def test_of_many_that_ask_at_once_the_latest_are_answered(explainer, monkeypatch):
    held = Held(monkeypatch)
    futures = [explainer.explained(row) for row in range(20, 30)]
    held.goes_on.set()

    assert all(one.result(60).proponents for one in futures[-4:])
    assert all(one.cancelled() for one in futures[1:6])


def test_closing_ends_the_search(folder, monkeypatch):
    held = Held(monkeypatch)
    explainer = Explainer(str(folder / "index"), ranked_table_in(folder))
    explainer.ahead([1])
    held.begun.acquire()
    waiting = explainer.explained(30)

    explainer.close()

    assert waiting.cancelled()
    assert not explainer._thread.is_alive()


def test_an_index_of_other_examples_is_refused_and_said_so(folder, tmp_path, opened):
    client = opened(saved(tmp_path), index=str(folder / "index"))

    answer = client.get("/api/why?row=1")

    assert answer.status_code == 400
    assert "is an index of other examples than" in answer.json()["error"]


def test_a_damaged_index_is_said_so_each_time(folder, tmp_path):
    missing = Explainer(str(tmp_path), ranked_table_in(folder))
    try:
        for row in (1, 2):
            with pytest.raises(IndexingError, match="holds no index"):
                missing.explained(row).result(60)
    finally:
        missing.close()


def test_an_index_alone_is_shown_and_explained(folder, opened):
    client = opened(folder / "index")
    table = ranked_table_in(folder / "index")

    page = client.rows(sort="self_influence")
    values = table.score("self_influence")

    assert [row["row"] for row in page["rows"]] == np.argsort(-values, kind="stable").tolist()
    assert page["rows"][0]["suggested"] is None
    assert client.get("/api/why?row=3").json()["proponents"]


def test_without_an_index_the_page_says_what_builds_one(tmp_path, opened):
    client = opened(saved(tmp_path))

    assert client.get("/api/about").json()["explains"] is False
    assert client.get("/api/why?row=1").status_code == 404
    assert client.post("/api/ahead", json={"rows": [1, 2]}).status_code == 202
    assert client.post("/api/ahead", json={"rows": list(range(8)) * 20}).status_code == 400


def test_settings_that_name_a_url_make_no_request(tmp_path):
    saved(tmp_path)
    (tmp_path / "mislabelled.settings.json").write_text('{"index": {"folder": "s3://bucket/x"}}')

    assert found_index(ranked_table_in(tmp_path)) is None
