"""What a folder holds is read back as it was, and what cannot be shown is said."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tracin
from reported_results import explanations_of, suspects_of
from tracin import QueryError
from tracin.report.found_labels import FoundRanking
from tracin.report.saved import saved_results
from tracin.results.saving import save_columns
from tracin.results.token_shares import PairTokens, TextShares, TokenShares


def test_explanations_come_back_as_they_were_saved(tmp_path):
    whole = explanations_of(queries=3, k=2, checkpoints=4)
    whole = replace(whole, query_ids=np.array(["c", "a", "b"], dtype=object))
    sides = [
        replace(
            side,
            errors=torch.full((3, 2), 0.5),
            bounds=torch.arange(3.0),
            sure=torch.tensor([[True, False]] * 3),
        )
        for side in (whole.proponents, whole.opponents)
    ]
    whole = replace(whole, proponents=sides[0], opponents=sides[1])
    whole.save(tmp_path / "explain.parquet")
    (tmp_path / "explain.settings.json").write_text(json.dumps({"notes": ["a note"]}))

    (one,) = saved_results(tmp_path).results

    columns = one.result.columns()
    assert one.name == ""
    assert one.result.notes == ("a note",)
    assert one.result.checkpoints == whole.checkpoints
    for name, values in whole.columns().items():
        assert (columns[name] == values).all(), name


def test_suspects_come_back_with_the_score_that_leads(tmp_path):
    whole = suspects_of([0, 1, 2], [1, 1, 1]).ranked("loss")
    save_columns({**whole.columns(), "is_flipped": np.ones(3, bool)}, tmp_path / "any.parquet")

    (one,) = saved_results(tmp_path).results
    (tmp_path / "any.settings.json").write_text(json.dumps({"mislabelled": {"rank_by": "loss"}}))
    (told,) = saved_results(tmp_path).results

    assert set(one.result.scores) == {"self_influence", "loss"}
    assert one.result.ids.tolist() == whole.ids.tolist()
    assert told.result.ranked_by == "loss"


def test_shares_of_tokens_come_back_by_pair_in_their_order(tmp_path):
    def pair(query: str, at: int, *tokens: str) -> PairTokens:
        shares = torch.arange(1.0, len(tokens) + 1, dtype=torch.float64)
        return PairTokens(query, at, at, 0.5, TextShares(tokens, shares), TextShares((), -shares))

    whole = TokenShares((pair("b", 4, "x", "\n"), pair("b", 2, "one"), pair("a", 4, "x", "y", "z")))
    whole.save(tmp_path / "tokens.parquet")
    columns = whole.columns()
    pq.write_table(
        pa.table({name: values[1:] for name, values in columns.items()}), tmp_path / "cut.parquet"
    )

    saved = saved_results(tmp_path)

    (one,) = saved.results
    assert isinstance(one.result, TokenShares)
    assert len(one.result) == 3
    for name, values in one.result.columns().items():
        assert (columns[name] == values).all(), name
    assert "cut.parquet cannot be read: its rows are not the whole texts" in saved.notes[0]


def test_found_curves_come_back_by_name(tmp_path):
    share = np.linspace(0, 1, 5)
    save_columns(
        {
            "score": np.repeat(["loss", "chance"], 5),
            "inspected": np.tile(share, 2),
            "found": np.concatenate([share**0.5, share]),
        },
        tmp_path / "found.parquet",
    )

    (one,) = saved_results(tmp_path).results

    loss, chance = one.result
    assert isinstance(loss, FoundRanking)
    assert (loss.name, loss.at(0.25), chance.at(0.5)) == ("loss", 0.5, 0.5)


def test_results_of_one_kind_keep_their_names_apart(tmp_path):
    for name in ("explain", "replay"):
        explanations_of().save(tmp_path / f"{name}.parquet")

    assert [one.name for one in saved_results(tmp_path).results] == ["explain", "replay"]


def test_other_and_damaged_files_are_named(tmp_path):
    suspects_of([0, 1], [1, 1]).save(tmp_path / "good.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"x": []}), tmp_path / "none.parquet")
    data = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    ragged = explanations_of().columns()
    pq.write_table(
        pa.table({name: values[:-1] for name, values in ragged.items()}), tmp_path / "less.parquet"
    )

    saved = saved_results(tmp_path)

    assert len(saved.results) == 1
    words = " ".join(saved.notes)
    assert (
        "other.parquet is no table of explanations, shares of tokens, suspects or found curves"
        in words
    )
    assert "none.parquet is empty" in words
    (tmp_path / "other.settings.json").write_text(json.dumps({"command": "select"}))
    said = "other.parquet is what 'tracin select' wrote, which a report does not show"
    assert said in saved_results(tmp_path).notes
    assert "cut.parquet cannot be read" in words
    assert "less.parquet cannot be read: its queries have different numbers" in words


def test_a_folder_without_results_says_what_writes_some(tmp_path):
    with pytest.raises(QueryError, match=r"holds no results .* 'tracin mislabelled RUN\.toml'"):
        saved_results(tmp_path)
    (tmp_path / "select.parquet").write_bytes(b"")
    with pytest.raises(
        QueryError, match=r"select\.parquet is a file.*reads all results of a folder"
    ):
        saved_results(tmp_path / "select.parquet")
    with pytest.raises(QueryError, match="is not a folder with results"):
        saved_results(tmp_path / "nowhere")


def test_a_tracers_folder_gives_its_explanations_and_its_verdict(tmp_path):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.randn(6, 2), torch.randn(6)
    queries = data[0][:2], data[1][:2]
    with tracin.Tracer(model, optimizer, "mse", queries, data, tmp_path / "trace") as tracer:
        for rows in torch.arange(6).split(2):
            optimizer.zero_grad()
            with tracer.batch(rows):
                loss = (model(data[0][rows])[:, 0] - data[1][rows]).square().mean()
            loss.backward()
            optimizer.step()

    kinds = [type(one.result).__name__ for one in saved_results(tmp_path / "trace").results]
    made = tracin.write_report(tmp_path / "page.html", tracer.trace(), train=data, queries=data)

    assert kinds == ["Explanations", "TraceDiagnostics"]
    page = made.path.read_text()
    assert page.index("Why did the model") < page.index("Can the trace be believed?")
