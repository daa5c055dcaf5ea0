"""Results print, save, and go to any table library as they are."""

import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tracin import Explanations, OutputError, QueryError, Suspects, files
from tracin.results.explanations import TopInfluences


@pytest.fixture
def suspects() -> Suspects:
    return Suspects(
        ids=np.array(["a", "b", "c"]),
        positions=np.array([0, 1, 2]),
        given_labels=np.array([0, 1, 1]),
        suggested_labels=np.array([0, 0, 1]),
        scores={
            "self_influence": torch.tensor([1.0, 3.0, 1.0]),
            "self_influence_last": torch.tensor([0.5, 2.0, 0.1]),
            "loss": torch.tensor([0.2, 0.1, 0.9]),
            "el2n": torch.tensor([0.3, 0.2, 0.1]),
            "margin": torch.tensor([0.5, -0.5, 0.1]),
        },
        ranked_by="self_influence",
    ).ranked("self_influence")


@pytest.fixture
def explanations() -> Explanations:
    def hits(sign: float) -> TopInfluences:
        shares = sign * torch.tensor([[[3.0, 1.0], [1.0, 1.0]], [[5.0, 0.0], [0.5, 0.5]]])
        ids = np.array([[10, 11], [12, 10]])
        return TopInfluences(ids, ids - 10, shares.sum(2), shares)

    return Explanations(np.array([7, 9]), hits(1), hits(-1), ("early", "late"))


def test_suspects_are_ranked_by_any_column_and_ties_keep_the_datas_order(suspects):
    assert suspects.ids.tolist() == ["b", "a", "c"]
    assert suspects.ranked("loss").ids.tolist() == ["c", "a", "b"]
    assert suspects.ranked("margin").ids.tolist() == ["b", "c", "a"]
    assert suspects.ranked("loss").ranked("self_influence").ids.tolist() == ["b", "a", "c"]


def test_top_and_bottom_cut_the_table(suspects):
    assert suspects.top(2).ids.tolist() == ["b", "a"]
    assert suspects.bottom(1).ids.tolist() == ["c"]
    with pytest.raises(QueryError, match="4 suspects were asked for, but there are 3"):
        suspects.top(4)
    with pytest.raises(QueryError, match="0 suspects were asked for"):
        suspects.bottom(0)


def test_an_unknown_ranking_is_refused_by_name(suspects):
    with pytest.raises(QueryError, match=r"one of \"self_influence\", .*; 'los' was given"):
        suspects.ranked("los")


def test_a_score_that_a_table_lacks_is_refused_by_name(suspects):
    with pytest.raises(QueryError, match=r"\"margin\"; 'residual' was given"):
        _ = suspects.residual
    with pytest.raises(QueryError, match="'residual' was given"):
        suspects.ranked("residual")
    with pytest.raises(QueryError, match="'residual' was given"):
        _ = suspects.prediction


def test_suspects_keep_ten_rows_on_the_screen_and_say_how_many_follow(suspects):
    many = np.tile(np.arange(3), 4)
    table_of_12 = Suspects(
        suspects.ids[many],
        suspects.positions[many],
        suspects.given_labels[many],
        suspects.suggested_labels[many],
        {name: values[many] for name, values in suspects.scores.items()},
        ranked_by="loss",
    )

    lines = str(table_of_12).splitlines()

    assert len(lines) == 2 + 10 + 1
    assert lines[-1] == "... 2 more"


def test_suspects_print_their_first_rows(suspects):
    lines = str(suspects).splitlines()

    assert lines[0] == "ranked by self_influence"
    assert lines[1].split()[:3] == ["id", "given", "suggested"]
    assert lines[2].split() == ["b", "1", "0", "3", "0.1", "-0.5"]


def test_explanations_are_read_query_by_query(explanations):
    first, second = explanations

    assert (first.id, second.id) == (7, 9)
    assert [hit.id for hit in second.proponents] == [12, 10]
    assert first.proponents[0].score == 4.0
    assert first.proponents[0].by_checkpoint == (3.0, 1.0)
    assert "proponent  10      4" in str(first)
    assert len(explanations) == 2


def test_explanations_can_be_cut_but_not_stretched(explanations):
    assert explanations.top(1).ids.tolist() == [[10], [12]]
    assert explanations.bottom(1).scores.tolist() == [[-4.0], [-5.0]]
    for cut in (explanations.top, explanations.bottom):
        with pytest.raises(QueryError, match="3 results were asked for, but 2 were kept"):
            cut(3)
        with pytest.raises(QueryError, match="0 results were asked for"):
            cut(0)


def test_explanations_have_one_row_a_hit(explanations):
    columns = explanations.columns()

    assert columns["query"].tolist() == [7, 7, 9, 9] * 2
    assert columns["rank"].tolist() == [1, 2] * 4
    assert columns["score at early"].tolist() == [3, 1, 5, 0.5, -3, -1, -5, -0.5]


def test_explanations_print_query_by_query(explanations):
    first, second = str(explanations).split("\n\n")

    assert first.splitlines()[0] == "query 7"
    assert second.splitlines()[0] == "query 9"
    assert [line.split() for line in second.splitlines()[1:]] == [
        ["kind", "id", "score"],
        ["proponent", "12", "5"],
        ["proponent", "10", "1"],
        ["opponent", "12", "-5"],
        ["opponent", "10", "-1"],
    ]


@pytest.mark.parametrize("kind", ["suspects", "explanations"])
def test_table_libraries_take_results_as_they_are(kind, request):
    result = request.getfixturevalue(kind)
    expected = {name: list(values) for name, values in result.columns().items()}

    assert pa.table(result).to_pydict() == expected
    assert pl.DataFrame(result).to_dict(as_series=False) == expected
    assert pd.DataFrame.from_arrow(result).to_dict("list") == expected


def test_saving_replaces_a_file_whole_or_not_at_all(suspects, tmp_path, monkeypatch):
    path = tmp_path / "results" / "suspects.parquet"
    suspects.save(path)
    before = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        suspects.top(1).save(path)

    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["suspects.parquet"]
    assert pq.read_table(path)["ids"].to_pylist() == ["b", "a", "c"]


def test_without_pyarrow_the_way_out_is_told(suspects, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(QueryError, match=r"pip install '\.\[cli\]' in a checkout"):
        suspects.save(tmp_path / "suspects.parquet")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file/within.parquet", "x" * 300 + ".csv", "a\0b.html"])
def test_a_place_that_cannot_be_written_to_is_named(suspects, explanations, tmp_path, place):
    (tmp_path / "file").write_text("")

    for result in (suspects, explanations):
        with pytest.raises(OutputError, match=r"Cannot write .*use another path"):
            result.save(tmp_path / place)

    assert [each.name for each in tmp_path.iterdir()] == ["file"]
