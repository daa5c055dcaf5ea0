"""What every table can do: files by suffix, table libraries, notebooks, rows and columns."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import tracin
from tracin import OutputError, QueryError
from tracin.printed import Printed
from tracin.results.html_table import html_page, html_table
from tracin.results.saving import save_columns
from tracin.results.tabular import Tabular


class Table(Tabular):
    def columns(self):
        return {
            "id": np.array(["a", "<b>&", "c"]),
            "score": np.array([1.5, float("nan"), -2.0], dtype=np.float32),
            "position": np.array([0, 1, 2]),
            "is_wrong": np.array([True, False, True]),
        }

    def __str__(self):
        return "a table"


@pytest.fixture
def table():
    return Table()


@pytest.fixture
def run():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    return tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(30, 3), torch.arange(30) % 3


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.PARQUET", "sub/folder/x.csv"])
def test_a_file_of_each_kind_holds_the_columns(table, tmp_path, name):
    table.save(tmp_path / name)

    read = pd.read_csv if name.endswith("csv") else pd.read_parquet
    found = read(tmp_path / name)
    assert found["id"].tolist() == ["a", "<b>&", "c"]
    np.testing.assert_array_equal(found["score"], table.columns()["score"])
    assert found["position"].tolist() == [0, 1, 2]
    assert found["is_wrong"].tolist() == [True, False, True]


def test_numbers_keep_their_width_in_parquet(table, tmp_path):
    table.save(tmp_path / "x.parquet")

    assert pd.read_parquet(tmp_path / "x.parquet")["score"].dtype == np.float32


def test_json_is_a_list_of_rows_and_what_is_not_finite_is_null(table, tmp_path):
    table.save(str(tmp_path / "x.json"))

    rows = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert rows[0] == {"id": "a", "score": 1.5, "position": 0, "is_wrong": True}
    assert rows[1]["score"] is None


def test_html_escapes_what_data_hold(table, tmp_path):
    table.save(tmp_path / "x.html")

    page = (tmp_path / "x.html").read_text()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert "script" not in page


@pytest.mark.parametrize("name", ["x.xlsx", "x", "x.csv.gz", "x.txt"])
def test_other_suffixes_are_refused_and_nothing_is_written(table, tmp_path, name):
    with pytest.raises(OutputError, match=r"End it in one of \.parquet, \.csv, \.json, \.html"):
        table.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_million_ids_of_any_kind_are_kept(tmp_path):
    class Objects(Tabular):
        def columns(self):
            return {"id": np.array(["a", "b"], dtype=object)}

    Objects().save(tmp_path / "x.parquet")

    assert pd.read_parquet(tmp_path / "x.parquet")["id"].tolist() == ["a", "b"]


def test_table_libraries_take_it(table):
    assert isinstance(table.to_pandas(), pd.DataFrame)
    assert isinstance(table.to_polars(), pl.DataFrame)
    assert table.to_pandas()["id"].tolist() == pl.DataFrame(table)["id"].to_list()
    assert table.to_polars()["score"].dtype == pl.Float32


def test_a_prompt_shows_the_table_and_a_notebook_its_first_rows(table):
    assert repr(table) == "a table"
    assert table._repr_html_().count("<tr>") == 4
    many = html_table({"n": np.arange(1000)})
    assert many.count("<tr>") == 21
    assert "980 more rows" in many


def test_a_page_says_how_many_rows_it_leaves_out():
    page = html_page({"n": np.arange(10_005)})

    assert "5 more rows" in page
    assert "default-src 'none'" in page


def test_suspects_are_a_sequence_of_rows_and_have_columns_by_name(run, data):
    suspects = run.find_mislabelled(data)

    first = suspects[0]
    assert (first.id, first.position) == (suspects.ids[0], suspects.positions[0])
    assert first.scores["loss"] == pytest.approx(float(suspects.loss[0]))
    assert [each.id for each in suspects] == suspects.ids.tolist()
    assert suspects[-1].id == suspects.ids[-1]
    assert suspects[2:5].ids.tolist() == suspects.ids[2:5].tolist()
    assert suspects[::-1].ids.tolist() == suspects.ids[::-1].tolist()
    assert suspects["loss"].tolist() == suspects.loss.tolist()
    assert len(suspects.head(3)) == 3
    assert len(suspects.head(100)) == 30
    assert len(suspects.top()) == 10
    with pytest.raises(IndexError):
        suspects[30]
    with pytest.raises(QueryError, match="A column of suspects"):
        suspects["lost"]


def test_explanations_are_a_sequence_of_queries_and_have_columns_by_name(run, data):
    explanations = run.explain(data, (data[0][:6], data[1][:6]), k=4)

    assert [each.id for each in explanations[1:3]] == [1, 2]
    assert explanations[::-1].query_ids.tolist() == [5, 4, 3, 2, 1, 0]
    backwards = explanations[::-1].proponents.scores
    torch.testing.assert_close(backwards, explanations.proponents.scores.flip(0))
    assert explanations[-1].id == 5
    assert explanations["score"].tolist() == explanations.columns()["score"].tolist()
    assert len(explanations.head(2)) == 2
    assert explanations.top().ids.shape == (6, 4)
    with pytest.raises(QueryError, match="A column of explanations"):
        explanations["scores"]
    with pytest.raises(IndexError):
        explanations[6]


def test_other_results_print_alike_everywhere(run, data):
    for result in (run.coverage(data), run.verify(data), run.explain(data, data, k=1)[0]):
        assert repr(result) == str(result)
        assert result._repr_html_().startswith("<pre>")


def test_text_in_a_notebook_is_escaped(run):
    named = tracin.WithIds((torch.randn(2, 3), torch.tensor([0, 1])), ["<img src=x>", "b"])

    shown = run.explain(named, named, k=1)[0]._repr_html_()

    assert "<img" not in shown
    assert "&lt;img" in shown


def test_a_spreadsheet_runs_no_formula_and_half_a_character_breaks_no_file(tmp_path):
    texts = ["=1+1", "+a", "-a", "@a", "\tb", "fine", "\ud800"]
    scores = np.linspace(-1, 1, 7, dtype=np.float32)
    table = {
        "=id": np.array(texts),
        "any": np.array([*texts[:-1], None], object),
        "score": scores,
    }

    save_columns(table, tmp_path / "x.csv")
    save_columns(table, tmp_path / "x.json")

    found = pd.read_csv(tmp_path / "x.csv")
    assert list(found) == ["'=id", "any", "score"]
    assert found["'=id"].tolist() == ["'=1+1", "'+a", "'-a", "'@a", "'\tb", "fine", r"\ud800"]
    assert found["any"].isna().tolist() == [False] * 6 + [True]
    assert (found["score"].to_numpy(np.float32) == scores).all()
    assert json.loads((tmp_path / "x.json").read_text())[0]["=id"] == "=1+1"


def subclasses(kind):
    return [each for one in kind.__subclasses__() for each in (one, *subclasses(one))]


def test_every_result_is_its_table_at_a_prompt_and_in_a_notebook():
    for name in tracin.__all__:  # all that is public is imported
        getattr(tracin, name)

    names = {each.__name__ for each in subclasses(Printed) if each.__module__.startswith("tracin.")}
    assert names >= {
        *("Coverage", "Verification", "TraceDiagnostics", "Selection", "Recall", "HeldOut"),
        *("FoundCurve", "FoundComparison", "RetrainingCurve", "LeaveOneOut", "Correlations"),
    }
    for each in subclasses(Printed):
        # A dataclass writes a repr of its fields unless it is told not to.
        assert each.__repr__ is Printed.__repr__, each
        assert each is Tabular or each.__str__ is not object.__str__, each


def test_what_holds_much_says_in_one_line_what_and_how_many(run, data, tmp_path):
    index = run.index(data, tmp_path / "index", tracin.Projection(dim=64), recall_queries=0)

    assert repr(run).startswith("TracIn(Linear, 1 checkpoint, 2 parameters (12 numbers), on cpu")
    rows = f"Index({len(data[0])} rows of {index.plan.width} numbers (float16) at 1 checkpoint, "
    assert repr(index) == f"{rows}{tmp_path / 'index'})"
