"""The ranking as the page sees it: sorted, filtered, searched, by pages."""

import json

import numpy as np
import pytest
import torch
from ranking import GIVEN, LOSS, SUGGESTED
from served import saved, saved_many

import tracin
from tracin.decisions.ranked_table import ranked_table_in
from tracin.results.suspects import RANKINGS
from tracin.view import save_examples
from tracin.view.examples import ShownExamples
from tracin.view.row_request import RowRequest
from tracin.view.row_views import ORDERS, RowViews, suspicion_of

RANKED = sorted(range(8), key=lambda at: -LOSS[at])


def test_the_first_page_is_the_ranking_as_it_was_saved(client):
    page = client.rows()

    assert [row["position"] for row in page["rows"]] == RANKED
    assert (page["found"], page["decided"], page["looked"]) == (8, 0, 0)
    first = page["rows"][0]
    assert first["id"] == "101"
    assert first["given"] == {"value": 1, "shown": "1"}
    assert first["suggested"] == {"value": 2, "shown": "2"}
    assert first["scores"]["loss"] == pytest.approx(0.9)


def test_pages_are_parts_of_one_order(tmp_path, opened):
    client = opened(saved_many(tmp_path, 500))
    loss = client.viewer.table.score("loss")

    found = [at for start in range(0, 500, 60) for at in client.positions(start=start, n=60)]

    assert found == np.argsort(-loss, kind="stable").tolist()
    assert client.positions(start=900) == []
    assert len(client.positions(n=100_000)) == 200  # at most


def test_every_score_can_be_sorted_by_also_backwards(client):
    rising = sorted(range(8), key=lambda at: LOSS[at])

    assert client.positions(sort="loss", down=0) == rising
    assert client.positions(sort="margin") == RANKED  # low margins are suspicious
    assert client.positions(sort="margin", down=0) == rising


@pytest.mark.parametrize("name", RANKINGS)
def test_suspicious_means_here_what_it_means_in_a_ranking(name):
    values = torch.tensor([0.5, -2.0, 0.0, 1.0])

    assert suspicion_of(name, values.numpy()).tolist() == RANKINGS[name](values).tolist()


def test_values_that_are_no_numbers_come_last_both_ways(tmp_path, opened):
    el2n = [float("nan"), 3.0, 1.0, float("nan"), 2.0, 5.0, 4.0, 0.0]
    client = opened(saved(tmp_path, el2n=el2n))

    assert client.positions(sort="el2n") == [5, 6, 1, 4, 2, 7, 0, 3]
    assert client.positions(sort="el2n", down=0) == [7, 2, 4, 1, 6, 5, 0, 3]
    assert client.rows(sort="el2n")["rows"][-1]["scores"]["el2n"] is None


def test_filters_are_those_of_the_slow_way(tmp_path, opened):
    client = opened(saved_many(tmp_path, 400))
    table = client.viewer.table
    order = np.argsort(-table.score("loss"), kind="stable")
    given, suggested = table.given.array(), table.suggested.array()

    assert client.rows(given=3)["found"] == int((given == 3).sum())
    assert client.positions(differs=1, n=200) == order[(given != suggested)[order]].tolist()[:200]
    both = (given == 2) & (suggested == 3)
    assert client.positions(given=2, suggested=3, n=200) == order[both[order]].tolist()
    assert client.positions(given=99) == []


def test_a_filter_by_decision_stands_still_while_it_is_worked_through(client):
    before = client.positions(decided="undecided", of=0)
    client.decide([before[0]], "wrong")

    assert client.positions(decided="undecided", of=0) == before
    assert client.positions(decided="undecided", of=1) == before[1:]
    assert client.positions(decided="wrong", of=1) == before[:1]


def test_words_find_ids_and_texts_letter_by_letter(tmp_path, opened):
    saved(tmp_path)
    texts = ["a cat", "A.CAT", "dog", "100%", "x", "[a-z]+", "a", "naïve Straße"]
    save_examples(tmp_path, texts=texts)
    client = opened(tmp_path)

    for words, positions in [
        ("cat", [0, 1]),
        ("a.cat", [1]),  # no regular expression
        ("[a-z]+", [5]),
        ("100%", [3]),
        ("103", [3]),  # an id
        ("NAÏVE", [7]),
        ("nothing", []),
        ("x" * 5000, []),
    ]:
        assert sorted(client.positions(words=words)) == positions, words


def test_texts_come_from_the_table_where_there_is_no_pack(tmp_path, opened):
    client = opened(saved(tmp_path, sentence=[f"sentence {at}" for at in range(8)]))

    assert client.rows()["rows"][0]["text"] == "sentence 1"
    assert client.positions(words="sentence 5") == [5]


def test_a_pack_of_some_examples_in_another_order_is_joined_by_position(tmp_path, opened):
    save_examples(saved(tmp_path), texts=["five", "two", "far"], positions=[5, 2, 99])
    client = opened(tmp_path)

    for _ in range(2):  # before all texts are read, and after
        texts = {row["position"]: row["text"] for row in client.rows()["rows"]}
        assert texts == {**dict.fromkeys(range(8)), 5: "five", 2: "two"}
        client.viewer.examples.load()
    assert client.positions(words="far") == []


def test_the_page_learns_what_there_is(client):
    about = client.get("/api/about").json()

    assert about["total"] == 8
    assert about["sorts"] == [{"name": "loss", "low": False}, {"name": "margin", "low": True}]
    assert about["leading"] == "loss"
    assert [one["value"] for one in about["labels"]] == [0, 1, 2]
    assert (about["suggests"], about["pictures"], about["explains"]) == (True, False, False)


def test_more_columns_and_fewer_are_taken_as_they_are(tmp_path, opened):
    more = saved(tmp_path / "more", loss_and_margin=LOSS, is_held_out=[True] * 8, note=["x"] * 8)
    fewer = saved(tmp_path / "fewer", suggested_labels=None, positions=None, loss=None)

    assert "is_held_out" in opened(more).rows()["rows"][0]["scores"]
    client = opened(fewer)
    assert client.rows()["rows"][0]["suggested"] is None
    refused = client.get("/api/rows", params={"differs": 1})
    assert (refused.status_code, "no suggested labels" in refused.text) == (400, True)


def test_what_find_mislabelled_saves_is_shown_as_it_ranks(tmp_path, opened):
    model = torch.nn.Linear(3, 2)
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[0.1])
    suspects = run.find_mislabelled((torch.randn(30, 3), torch.arange(30) % 2))
    suspects.save(tmp_path / "mislabelled.parquet")

    client = opened(tmp_path)

    assert client.positions() == suspects.positions.tolist()
    assert client.get("/api/about").json()["leading"] == suspects.ranked_by


def test_targets_that_are_numbers_have_no_list_of_labels(tmp_path, opened):
    client = opened(saved(tmp_path, given_labels=[float(one) for one in GIVEN]))
    about = client.get("/api/about").json()

    assert about["labels"] is None
    answer = client.decide([1], "relabelled", 0.25)
    assert answer["rows"][0]["label"] == {"value": 0.25, "shown": "0.25"}


def test_classes_have_their_names(tmp_path, opened):
    client = opened(saved(tmp_path), names=("cat", "dog"))

    shown = {row["given"]["shown"] for row in client.rows()["rows"]}
    assert shown == {"0 cat", "1 dog", "2"}


@pytest.mark.parametrize(
    "asked",
    [
        {"sort": "ids"},
        {"sort": "__class__"},
        {"decided": "maybe"},
        {"start": "x"},
        {"start": "9" * 50},
        {"n": "1.5"},
        {"given": "cat"},
        {"given": "1e999"},
        {"decided": "wrong", "of": "²"},
    ],
)
def test_what_cannot_be_asked_is_answered_in_words(client, asked):
    answer = client.get("/api/rows", params=asked)

    assert answer.status_code == 400
    assert len(answer.json()["error"]) > 10


def test_old_views_are_forgotten(tmp_path):
    table = ranked_table_in(saved_many(tmp_path, 50))
    views = RowViews(table, ShownExamples(table))
    kinds = np.zeros(50, np.int8)

    for at in range(30):
        views.view(RowRequest(given=at), kinds)

    assert len(views._views) == 8


HOSTILE = [
    "<script>alert(1)</script>",
    "</script>",
    "{{7*7}}",
    '"onerror="alert(1)',
    "exe\u202egnp",
    "\u05e9\u05dc\u05d5\u05dd",
    "\x00\x1b[2J\x07",
    "x" * 1_000_000,
]


def test_hostile_texts_ids_and_labels_are_harmless(tmp_path, opened):
    labels = [text[:150] for text in HOSTILE]
    saved(tmp_path, ids=labels, given_labels=labels, suggested_labels=labels)
    save_examples(tmp_path, texts=HOSTILE)
    client = opened(tmp_path, names=("<b>",))

    page = client.rows()
    examples = [client.get(f"/api/example?row={row}").json() for row in range(8)]

    assert client.get("/api/rows").headers["content-type"] == "application/json"
    assert len(json.dumps(page)) < 40_000  # a line of a million letters is cut
    for answer in (page, examples, client.get("/api/about").json()):
        text = json.dumps(answer, ensure_ascii=False)
        # `value` is what the page sends back; it shows what stands beside it.
        shown = json.dumps(without_values(answer), ensure_ascii=False)
        assert "\\u202e" not in text.replace("\\\\u202e", "")
        assert not set("\u202e\x1b\x07\x00") & set(shown)
    assert examples[7]["length"] == 1_000_000
    assert len(examples[7]["whole"]) == 5000
    assert examples[0]["whole"] == HOSTILE[0]  # the page puts it in as text


def without_values(answer):
    if isinstance(answer, dict):
        return {name: without_values(one) for name, one in answer.items() if name != "value"}
    return [without_values(one) for one in answer] if isinstance(answer, list) else answer


def test_ids_beyond_what_a_page_can_count_stay_whole(tmp_path, opened):
    client = opened(saved(tmp_path, ids=[2**63 - 1 - at for at in range(8)]))

    assert client.rows()["rows"][0]["id"] == str(2**63 - 2)
    assert client.positions(words=str(2**63 - 4)) == [3]


def test_the_first_page_does_not_wait_for_all_texts(tmp_path, opened):
    saved(tmp_path)
    save_examples(tmp_path, texts=[f"text {at}" for at in range(8)])
    viewer = opened(tmp_path).viewer

    found = [viewer.row(row)["text"] for row in range(8)]

    assert found == [f"text {at}" for at in range(8)]
    assert "_texts" not in viewer.examples.__dict__


def test_a_suggestion_less_likely_than_the_given_label_is_no_disagreement(tmp_path, opened):
    likely = [0.9, 0.2, 0.9, 0.9, 0.5, 0.1, 0.9, 0.9]
    suggested = [(one + 1) % 3 for one in GIVEN]
    client = opened(
        saved(
            tmp_path,
            suggested_labels=suggested,
            given_probability=likely,
            suggested_probability=[1 - one for one in likely],
        )
    )

    assert sorted(client.positions(differs=1)) == [1, 5]
    assert [row["row"] for row in client.rows()["rows"] if row["disagrees"]] == [1, 5]


def test_suggestions_are_as_saved(client):
    assert [client.viewer.row(at)["suggested"]["value"] for at in range(8)] == SUGGESTED


def test_few_orders_are_kept_and_made_again_alike(tmp_path, opened):
    columns = {f"score{at}": np.roll(LOSS, at).tolist() for at in range(ORDERS + 3)}
    client = opened(saved(tmp_path, **columns))
    client.viewer.views.prepare()

    first = {name: client.positions(sort=name) for name in columns}
    again = {name: client.positions(sort=name, differs=0, down=1) for name in columns}

    assert first == again
    assert len(client.viewer.views._orders) <= ORDERS
    assert first["score1"] == np.argsort(-np.roll(LOSS, 1), kind="stable").tolist()
