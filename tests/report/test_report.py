"""A report says what to do, is complete in itself, and shows text from data without obeying it."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import tracin
from reported_results import HOSTILE, diagnostics_of, explanations_of, suspects_of
from tracin import DataError, OutputError, QueryError, Shown
from tracin.analysis import compare_found, found_curve
from tracin.report import write
from tracin.report.limits import PageLimits
from tracin.results.recall import Recall


class Tags(HTMLParser):
    """Every tag with its attributes, and what stands in scripts and style sheets."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem is not None:
            self.inside[self.cdata_elem] = self.inside.get(self.cdata_elem, "") + data
        else:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(tmp_path: Path, *results, **options) -> Tags:
    report = tracin.write_report(tmp_path / "page.html", *results, **options)
    text = report.path.read_text()
    assert report.size == len(text.encode())
    return Tags(text)


def test_a_page_asks_for_nothing_outside(tmp_path, explanations, suspects, train):
    page = page_of(tmp_path, explanations, suspects, train=train, queries=train)

    sources = [tag.get(at) for _, tag in page.tags for at in ("src", "href") if at in tag]
    policy = next(tag["content"] for tag in page.named("meta") if "http-equiv" in tag)
    assert sources
    assert all(re.match(r"data:|#", source or "") for source in sources)
    assert not any(at.startswith("on") or at == "style" for _, tag in page.tags for at in tag)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_the_policy_allows_this_script_and_this_style_sheet_alone(tmp_path, suspects):
    page = page_of(tmp_path, suspects)

    policy = next(tag["content"] for tag in page.named("meta") if "http-equiv" in tag) or ""
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inside[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert len(page.named(tag)) == 1


def test_equal_results_make_equal_files(tmp_path, explanations, suspects, train):
    first = tracin.write_report(tmp_path / "a.html", explanations, suspects, train=train)
    second = tracin.write_report(tmp_path / "b.html", explanations, suspects, train=train)

    assert first.path.read_bytes() == second.path.read_bytes()


def test_the_table_is_complete_without_the_script(tmp_path, suspects):
    page = page_of(tmp_path, suspects)

    rows = [tag for tag in page.named("tr") if "data-given" in tag]
    assert len(rows) == len(suspects)
    assert page.named("button") == []
    assert ("div", {"class": "tools", "hidden": None}) in page.tags


@pytest.mark.parametrize("place", ["id", "label", "text", "column", "title", "name of a class"])
def test_hostile_text_is_shown_and_not_obeyed(tmp_path, place):
    count = len(HOSTILE)
    ids = [f"{each[:2000]} {at}" for at, each in enumerate(HOSTILE)] if place == "id" else None
    given = HOSTILE if place == "label" else [0] * count
    suspects = suspects_of(given, given[::-1] if place == "label" else [1] * count, ids)
    example = {
        "text": lambda at: Shown(text=HOSTILE[at]),
        "column": lambda at: Shown(columns={HOSTILE[at]: HOSTILE[-at - 1]}),
    }.get(place, lambda at: Shown())
    train = None if place == "id" else list(range(count))
    labels = HOSTILE if place == "name of a class" else None
    title = "".join(HOSTILE) if place == "title" else None

    options = {"labels": labels, "title": title, "show": lambda at: example(int(at))}
    page = page_of(tmp_path, suspects, train=train, **options)

    assert len(page.named("script")) == 1
    assert page.named("img") == []
    assert not any(name.startswith("on") for _, tag in page.tags for name in tag)
    assert not set(page.text) & set("\u202e\x00\x1b\x07\x08")
    assert "49" not in page.text.replace("349", "") or place in ("id", "title")
    assert len(page.text) < 100_000
    rows = [tag for tag in page.named("tr") if "data-given" in tag]
    assert len(rows) == count


def test_a_long_text_is_cut_and_its_length_said(tmp_path, suspects):
    page = page_of(tmp_path, suspects, train=["a" * 10_000] * 12)

    assert "a" * 300 + "… (10,000 characters)" in page.text
    assert "a" * 301 not in page.text


def test_doubted_opponents_are_what_to_look_at_first(tmp_path, explanations):
    given = [0] * 12
    suggested = [0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]

    page = page_of(tmp_path, explanations, suspects_of(given, suggested))

    assert "Look at the labels of examples 3 and 5 first" in page.text
    assert "the model itself doubts the labels of 2" in page.text


def test_without_a_ranking_the_strongest_opponents_are_named(tmp_path, explanations, train):
    page = page_of(tmp_path, explanations, train=train, queries=train)

    assert "Look at examples 3, 4 and 5 first: learning them raised this loss most" in page.text
    assert "1 of 3 proponents are labelled 0, as it is" in page.text


def test_examples_without_labels_have_none_to_mend(tmp_path, explanations):
    page = page_of(tmp_path, explanations)

    assert "Mend those that are wrong" in page.text
    assert "labels" not in page.text


def test_opponents_that_the_model_agrees_with_are_said_to_be_so(tmp_path, explanations):
    page = page_of(tmp_path, explanations, suspects_of([0] * 12, [0] * 12))

    assert "wrong labels are not the likely cause" in page.text


@pytest.mark.parametrize("ranked", [True, False])
def test_numbers_are_neither_agreed_with_nor_counted_as_labels(tmp_path, ranked):
    model = torch.nn.Linear(1, 1, bias=False)
    run = tracin.TracIn(model, "mse", [{"weight": torch.zeros(1, 1)}], learning_rates=[0.5])
    data = torch.ones(4, 1), torch.tensor([1.0, 2.0, -1.0, -3.0])
    results = [run.explain(data, data, k=2), *([run.find_mislabelled(data)] if ranked else [])]

    page = page_of(tmp_path, *results, train=data, queries=data)

    assert "Look at examples 3 and 2 first: learning them raised this loss most." in page.text
    assert "agrees with the labels" not in page.text
    assert "are labelled" not in page.text


def test_opponents_that_lowered_the_loss_are_not_called_against_it(tmp_path, explanations):
    page = page_of(tmp_path, replace(explanations, opponents=explanations.proponents))

    assert "No training example raised this loss." in page.text
    assert "Opponents: these lowered its loss least" in page.text


def test_what_the_model_prefers_goes_by_its_probabilities_where_they_are_known(tmp_path):
    suspects = suspects_of([0, 0, 0], [1, 1, 1])
    chances = {
        "given_probability": torch.tensor([0.1, 0.5, 0.9]),
        "suggested_probability": torch.tensor([0.8, 0.4, 0.1]),
    }

    page = page_of(tmp_path, replace(suspects, scores={**suspects.scores, **chances}))

    assert "For 1 of 3 examples (33.3 %) the model finds another label likelier" in page.text
    assert sum("data-differs" in tag for tag in page.named("tr")) == 1
    assert "agrees; else 1" in page.text


def test_confusions_count_the_labels_that_the_model_doubts_and_no_others(tmp_path):
    suspects = suspects_of([0, 0, 2, 1], [1, 1, 3, 0])
    chances = {
        "given_probability": torch.tensor([0.1, 0.2, 0.9, 0.5]),
        "suggested_probability": torch.tensor([0.8, 0.7, 0.1, 0.4]),
    }

    page = page_of(tmp_path, replace(suspects, scores={**suspects.scores, **chances}))

    counted = [tag for tag in page.named("li") if "data-given" in tag]
    assert [(tag["data-given"], tag["data-suggested"]) for tag in counted] == [("0", "1")]
    assert "0 → 1: 2" in page.text


def test_targets_of_a_regression_are_predictions_not_disagreements(tmp_path):
    suspects = suspects_of([1.5, 2.5], [7.25, 2.0])
    suspects = replace(
        suspects, scores={"residual": torch.tensor([-5.75, 0.5])}, ranked_by="residual"
    )

    page = page_of(tmp_path, suspects)

    assert "The first has the target 1.5, and the model predicts 7.25." in page.text
    assert not any("data-differs" in tag for tag in page.named("tr"))
    assert page.named("select") == []


def test_labels_have_the_names_of_their_classes(tmp_path, suspects, train):
    page = page_of(tmp_path, suspects, train=train, labels=["cat", "dog", "<eel>"])

    assert {tag["value"] for tag in page.named("option")} == {"", "cat", "dog", "<eel>"}
    assert "cat → dog: 4" in page.text


def test_estimates_show_their_errors_recall_and_where_certainty_ends(tmp_path, explanations):
    def estimated(side):
        errors, sure = torch.full((2, 3), 0.25), torch.tensor([[True, True, False]] * 2)
        return replace(side, errors=errors, sure=sure, bounds=torch.zeros(2))

    recall = Recall(10, 16, 0.9, 0.8, "of its own rows")
    result = replace(
        explanations,
        proponents=estimated(explanations.proponents),
        opponents=estimated(explanations.opponents),
        recall=recall,
        notes=("a <b>note</b>",),
    )

    page = page_of(tmp_path, result)

    assert page.text.count("± 0.25") == 12
    assert page.text.count("Below this line") == 4
    assert "recall@10: 0.900 of proponents" in page.text
    assert "a <b>note</b>" in page.text


def test_scores_that_are_no_numbers_are_shown_as_such(tmp_path, explanations):
    broken = explanations.proponents
    nan = torch.full_like(broken.by_checkpoint, float("nan"))
    result = replace(explanations, proponents=replace(broken, scores=nan.sum(2), by_checkpoint=nan))

    page = page_of(tmp_path, result)

    paths = [tag["d"] or "" for tag in page.named("path")]
    assert "not a number" in page.text
    assert not any("nan" in path for path in paths)


def test_bars_of_a_query_share_one_scale(tmp_path):
    page = page_of(tmp_path, explanations_of(queries=1, k=2, checkpoints=1))

    bars = [tag["d"] for tag in page.named("path") if tag.get("class") in ("up", "down")]
    heights = [float(re.findall(r"v(-?[\d.]+)", bar or "")[0]) for bar in bars]
    assert heights == [-14, -7, 14, 7]


def test_many_checkpoints_are_added_up_into_few_bars(tmp_path):
    page = page_of(tmp_path, explanations_of(queries=1, k=1, checkpoints=100))

    (first, *_) = [tag["d"] or "" for tag in page.named("path") if tag.get("class") == "up"]
    assert first.count("M") == 20
    assert "step-0 to step-99, 100 of them, neighbours added up to 20 bars" in page.text


def test_what_is_too_much_is_left_out_and_said(tmp_path):
    explanations = explanations_of(queries=40, k=30, train=100)
    suspects = suspects_of([0] * 400, [1] * 400)

    report = tracin.write_report(tmp_path / "page.html", explanations, suspects)

    assert report.left_out == (
        "32 of 40 queries are shown",
        "20 of 30 proponents and opponents of each query are shown",
        "300 of 400 suspects are shown",
    )
    text = Tags(report.path.read_text()).text
    assert all(each in text for each in report.left_out)
    assert "300 of 400 suspects" in str(report)


def test_a_file_that_would_be_too_large_shows_half_as_much(tmp_path, monkeypatch, explanations):
    monkeypatch.setattr(write, "LARGEST", 60_000)

    report = tracin.write_report(tmp_path / "page.html", suspects_of([0] * 400, [1] * 400))

    assert report.size <= 60_000
    assert report.left_out == ("75 of 400 suspects are shown",)


def test_halving_ends_with_one_of_each():
    limits = PageLimits()
    for _ in range(9):
        limits = limits.halved()

    assert limits.is_least


def test_a_found_curve_says_how_much_looking_finds(tmp_path):
    is_wrong = torch.arange(100) < 10
    good = found_curve(torch.arange(100, 0, -1.0), is_wrong)
    bad = found_curve(torch.arange(100.0), is_wrong)

    page = page_of(tmp_path, compare_found({"good": good, "bad": bad}))

    assert "first 10 % of the ranking by good: it holds 100 % of the labels" in page.text
    assert "random order" in page.text
    assert "best possible" in page.text
    assert len([tag for tag in page.named("path") if "curve" in (tag.get("class") or "")]) == 4
    assert "this ranking" in page_of(tmp_path, good).text


def test_a_traces_diagnostics_lead_with_their_verdict(tmp_path):
    actual = np.random.default_rng(0).normal(1, 1, (2000, 3))

    good = page_of(tmp_path, diagnostics_of(actual * 1.01, actual))
    bad = page_of(tmp_path, diagnostics_of(actual * 3, actual))

    assert "Trust rankings and magnitudes" in good.text
    assert "1,500 of 6,000" in good.text
    assert ("p", {"class": "say"}) in good.tags
    assert "Trust rankings, but not magnitudes" in bad.text
    assert ("p", {"class": "say warn"}) in bad.tags


def test_parts_come_in_one_order_and_are_linked(tmp_path, explanations, suspects):
    page = page_of(tmp_path, suspects, explanations)

    links = [tag["href"] for tag in page.named("a")][1:]
    ids = [tag["id"] for tag in page.named("h2")]
    assert [link[1:] for link in links if link] == ids
    assert page.text.index("Why did the model") < page.text.index("Which labels are wrong?")


def test_other_data_than_the_results_is_refused(tmp_path, suspects, train):
    with pytest.raises(DataError, match=r"train holds 5 examples, but .* position 5"):
        page_of(tmp_path, suspects, train=(train[0][:5], train[1][:5]))
    renamed = tracin.WithIds(train, [f"digit {at}" for at in range(12)])
    with pytest.raises(DataError, match="has the id digit 0 at position 0, but the result has 0"):
        page_of(tmp_path, suspects, train=renamed)
    assert not (tmp_path / "page.html").exists()


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(QueryError, match="A report needs something to show"):
        tracin.write_report(tmp_path / "page.html")
    with pytest.raises(QueryError, match="got a dict"):
        tracin.write_report(tmp_path / "page.html", {})  # type: ignore[arg-type]


def test_a_file_that_cannot_be_written_is_reported(tmp_path, suspects):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="No partial file is left"):
        tracin.write_report(tmp_path / "file" / "page.html", suspects)
    with pytest.raises(OutputError, match=r"Expected a path such as 'why\.html'"):
        tracin.write_report(3, suspects)  # type: ignore[arg-type]


def test_names_in_a_sentence_keep_its_words_in_order(tmp_path):
    hebrew = [f"\u05e9\u05dc\u05d5\u05dd {at}" for at in range(4)]

    page = page_of(tmp_path, suspects_of([0] * 4, [1] * 4, hebrew))

    assert all(f"\u2068{each}\u2069" in page.text for each in hebrew[:3])
