"""Tables on a screen: they fit it, and nothing in them is obeyed by a terminal."""

import numpy as np
import pytest
import torch

from tracin.plain_text import display_width
from tracin.results.suspects import NO_OTHER, Suspects
from tracin.results.table import aligned, aligned_in_parts

HEADER = ["id", "given", "p", "suggested", "p", "loss", "margin", "self_influence"]
ROWS = [
    [f"data/train/pictures/of/animals/{at:05d}.png", at, 0.1234, 1, 0.8, 2.842, -0.7712, 194.9]
    for at in range(3)
]


@pytest.mark.parametrize("width", [120, 80, 60, 40, 20])
def test_a_table_fits_the_screen_and_names_the_columns_that_do_not(width):
    lines = aligned(HEADER, ROWS, width).split("\n")

    shown = lines[0].split()
    left_out = lines[4].partition(": ")[2].split(", ") if len(lines) > 4 else []
    assert max(map(len, lines)) <= width
    assert shown == HEADER[: len(shown)]
    assert all(line.startswith("data") for line in lines[1:4])
    if width >= 80:
        assert shown + left_out == HEADER
    assert (len(shown) == len(HEADER)) == (width == 120)


def test_a_number_with_its_interval_is_never_cut():
    interval = "-0.123 [-0.101 -0.145]"

    lines = aligned(["method", "LDS"], [["a" * 90, interval]], 50).split("\n")

    assert lines[1].endswith(interval)
    assert lines[1].split()[0] == f"{'a' * 12}...{'a' * 11}"


def test_on_a_narrow_screen_a_long_id_leaves_room_for_the_score():
    rows = [["proponent", "data/train/" + "x" * 90, 1234.5, 7]]

    lines = aligned(["kind", "id", "score", "label"], rows, 40).split("\n")

    assert lines[0].split() == ["kind", "id", "score", "label"]
    assert max(map(len, lines)) <= 40


def test_letters_that_take_two_columns_are_counted_as_two():
    lines = aligned(["id", "n"], [["猫" * 60, 1], ["e\u0301", 2]], 80).split("\n")

    assert [display_width(line) for line in lines] == [80, 80, 80]
    assert "..." in lines[1]


def test_the_width_is_that_of_the_terminal(monkeypatch):
    rows = [["x" * 200]]

    monkeypatch.setenv("COLUMNS", "50")
    narrow = aligned(["id"], rows)
    monkeypatch.setenv("COLUMNS", "300")
    wide = aligned(["id"], rows)

    assert len(narrow.split("\n")[1]) == 50
    assert "x" * 200 in wide


def suspects(ids, suggested, ranked_by="aum"):
    count = len(ids)
    names = ("given_probability", "suggested_probability", "loss_and_margin", "loss", "margin")
    names += ("aum", "self_influence")
    scores = {name: torch.linspace(1, 0, count) for name in names}
    scores["suggested_probability"] = torch.linspace(0, 1, count)
    given = np.zeros(count, dtype=np.int64)
    return Suspects(ids, np.arange(count), given, np.array(suggested), scores, ranked_by)


def test_suspects_fit_keep_what_leads_and_say_how_to_go_on(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ids = np.array([f"data/train/pictures/\x1b[2J{at:05d}.png" for at in range(20)])
    text = str(suspects(ids, [0, *[1] * 19]))

    lines = text.split("\n")
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in text
    assert lines[1].split()[:3] == ["id", "given", "p"]
    assert "aum" in lines[1]
    assert NO_OTHER in lines[2]
    assert "columns that do not fit: " in text
    assert "... 10 more" in text
    advice = " ".join(text.split("\n\n")[1].split("\n"))
    assert "prefers another label for 10 of 20 examples. Not all" in advice
    assert "Review suspects.sample(); suspects.estimate(reviewed) says how many" in advice


def test_picked_suspects_give_no_advice_and_as_many_rows_as_are_wanted():
    whole = suspects(np.arange(30), [1] * 30, "loss")

    assert "Review" not in str(whole[5:25])
    assert whole.as_text(3).split("\n")[5:7] == ["... 27 more", ""]
    assert "more" not in whole.as_text(30).split("\n\n")[0]


def test_a_table_in_parts_shows_every_column():
    header = ["method", *"abcdefgh"]
    rows = [["TracIn", *["0.123 [0.101 0.145]"] * 8], ["KFAC", *["1 [1 1]"] * 8]]

    text = aligned_in_parts(header, rows, 80)

    parts = [part.split("\n") for part in text.split("\n\n")]
    assert max(map(len, text.split("\n"))) <= 80
    assert [part[0].split() for part in parts] == [
        ["method", "a", "b", "c"],
        ["method", "d", "e", "f"],
        ["method", "g", "h"],
    ]
    assert all(part[2].startswith("KFAC") for part in parts)
