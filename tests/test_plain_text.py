"""Nothing that data or files contain can make a terminal do anything, or forge a line."""

import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import tracin
from tracin.cli.main import main
from tracin.plain_text import display_width, middle_cut, plain, plain_lines
from tracin.results.explanations import TopInfluences

HOSTILE = "\x1b[2K\rproponent  harmless.png  99\n\u202egpj.exe\u2028\x9b1A\x07\u200b"
SHOWN = "\\x1b[2K\\rproponent  harmless.png  99\\n\\u202egpj.exe\\u2028\\x9b1A\\x07\\u200b"


def is_safe(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (HOSTILE, SHOWN),
        ("naïve_日本_🦊", "naïve_日本_🦊"),
        ("👩\u200d🔬 क\u200cष", "👩\u200d🔬 क\u200cष"),  # joiners are spelling
        ("C:\\temp\\new", "C:\\temp\\new"),
        ("a\u00a0b", "a\u00a0b"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("\x85\x7f\x00", "\\x85\\x7f\\x00"),
        (17, "17"),
        (None, "None"),
        (Path("a\nb"), "a\\nb"),
    ],
)
def test_what_a_terminal_obeys_is_shown_as_python_writes_it(value, shown):
    assert plain(value) == shown


@pytest.mark.parametrize("letter", ["a", "e\u0301", "\u732b", "\u0915\u094d"], ids=ascii)
@pytest.mark.parametrize("most", [0, 2, 3, 24])
def test_a_cut_text_fits_and_keeps_both_ends(letter, most):
    cut = middle_cut(f"<{letter * 60}>", most)

    assert display_width(cut) <= most
    assert most < 24 or (cut[0], cut[-1], "..." in cut) == ("<", ">", True)


def test_further_lines_of_a_message_cannot_look_like_messages_of_their_own():
    assert plain_lines("one\nerror: two\r\n\nthree") == "one\n    error: two\\r\n    \n    three"


@pytest.mark.parametrize("kind", [tracin.QueryError, tracin.LabelError, tracin.DataWarning])
def test_errors_and_warnings_neutralise_what_they_quote(kind):
    shown = str(kind(f"the id '{HOSTILE}' is not there"))

    assert is_safe(shown)
    assert "\n    \\u202egpj" in shown


def test_a_shown_warning_is_neutral():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(f"checkpoint {HOSTILE}", tracin.CheckpointWarning, stacklevel=1)

    shown = warnings.formatwarning(caught[0].message, caught[0].category, "file.py", 1, "")  # pyright: ignore

    assert "\x1b" not in shown
    assert "\\x1b" in shown


def tiny_run(**options):
    torch.manual_seed(0)
    model = nn.ModuleDict({"sneaky\x1b[31m\u202e": nn.Linear(4, 3)})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return next(iter(self.parts.values()))(x)

    net = Net()
    checkpoint = tracin.Checkpoint(net.state_dict(), 0.1, name=f"best{HOSTILE}")
    data = tracin.WithIds(
        (torch.randn(4, 4), torch.tensor([0, 1, 2, 0])), [f"{i}{HOSTILE}" for i in range(4)]
    )
    return tracin.TracIn(net, "cross_entropy", [checkpoint], **options), data


def test_every_result_prints_hostile_ids_and_names_as_text(tmp_path):
    run, data = tiny_run()

    results = [
        run.explain(data, data, k=2),
        run.explain(data, data, k=1)[0],
        run.find_mislabelled(data),
        run.coverage(data),
        run.verify(data),
        tracin.contributions(run, data),
        run.index(data, tmp_path / "i\x1bndex", recall_queries=0),
        tracin.select_checkpoints(run.checkpoints, 1, by="even", weights="equal"),
    ]

    for result in results:
        assert is_safe(str(result)), repr(str(result))
        assert "harmless" not in "".join(
            line for line in str(result).split("\n") if line.startswith("proponent  harmless")
        )


def test_saved_columns_keep_ids_as_they_are():
    run, data = tiny_run()

    columns = run.explain(data, data, k=1).columns()

    assert set(columns["id"]) <= set(data.ids)
    assert pl.DataFrame(columns)["query"][0] == data.ids[0]


def test_an_error_names_a_hostile_id_harmlessly():
    run, data = tiny_run()
    inputs, _ = data.dataset
    inputs[2, 0] = torch.nan

    with pytest.raises(tracin.NonFiniteError) as caught:
        run.self_influence(data)

    assert is_safe(str(caught.value))
    assert "2\\x1b[2K" in str(caught.value)


def test_the_command_line_neutralises_its_errors(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["mislabelled", str(tmp_path / "\x1b[31mRUN.toml")])

    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\\x1b[31mRUN.toml" in said


def test_ids_that_no_file_can_hold_are_refused_where_they_are_given():
    with pytest.raises(tracin.DataError, match=r"'b\\udcff' holds half a character.*backslash"):
        tracin.WithIds(torch.zeros(2), ["a", "b\udcff"])


def test_checkpoints_of_one_name_keep_a_column_each():
    shares = torch.tensor([[[3.0, 1.0, 2.0]]])
    ids = np.array([[0]])
    hits = TopInfluences(ids, ids, shares.sum(2), shares)
    found = tracin.Explanations(np.array([7]), hits, hits, ("best", "best", "best (2)"))

    columns = found.columns()

    named = {name: value[0] for name, value in columns.items() if name.startswith("score at")}
    assert named == {"score at best": 3.0, "score at best (3)": 1.0, "score at best (2)": 2.0}
    assert sum(named.values()) == columns["score"][0]
