"""What an example is for a person: guessed by its type, and never an error."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import tracin
from tracin import DataError, Explanations, QueryError, Shown, Suspects
from tracin.results.explanations import TopInfluences
from tracin.results.shown import Showing, brief

PICTURE = torch.rand(3, 32, 32)


class Broken:
    def __repr__(self):
        raise RuntimeError("no text")


class Augmented(Dataset):
    """Draws random numbers, and cannot read one of its files."""

    def __len__(self):
        return 6

    def __getitem__(self, position):
        if position == 4:
            raise OSError("file is gone")
        return torch.rand(3), f"text {position}"


def explanations(train: int = 3) -> Explanations:
    positions = np.arange(train)[None]
    shares = torch.ones(1, train, 1)
    top = TopInfluences(positions, positions, shares.sum(2), shares)
    return Explanations(np.array([1]), top, top, ("last",))


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (("what a film", 1), "[1] what a film"),
        ((PICTURE, torch.tensor(2)), "[2] (a picture)"),
        (PICTURE[0], "(a picture)"),
        (Image.new("L", (8, 8)), "(a picture)"),
        (np.zeros((32, 32, 3), np.uint8), "(a picture)"),
        ({"image": PICTURE, "label": 3, "place": "Ulm"}, "[3] (a picture) Ulm"),
        ({"text": "so", "stars": 4, "label": "good"}, "[good] so stars: 4"),
        ((torch.tensor([1.0, 2.0]), torch.tensor([0.5])), "[0.5] 1, 2"),
        ([0.5, 1.5, 2.5], "[0.5, 1.5, 2.5]"),
        (torch.zeros(100, 3), "numbers [100, 3] of float32, from 0 to 0"),
        (namedtuple("Row", "age income")(31, "low"), "[low] 31"),
        (None, "None"),
        ((), "()"),
        ({}, "{}"),
        (float("nan"), "nan"),
        (2**70, str(2**70)),
        (b"\x00", "b'\\\\x00'"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_example_goes_by_its_type(example, words):
    assert str(Showing().of(example)).replace("\\", "") == words.replace("\\", "")


def test_token_ids_are_decoded_where_a_tokenizer_is_given():
    example = {
        "input_ids": torch.tensor([5, 6, 0]),
        "attention_mask": torch.tensor([1, 1, 0]),
        "labels": torch.tensor([5, 6, -100]),
    }

    decoded = Showing(decode=lambda ids: " ".join(f"w{each}" for each in ids)).of(example)
    plain = Showing().of(example)

    assert (decoded.text, decoded.label, dict(decoded.columns)) == ("w5 w6", None, {})
    assert plain.words == "5 6"
    assert "decode=tokenizer.decode" in str(plain.note)


def test_labels_have_names_where_there_are_some():
    how = Showing(labels=["cat", "dog"])

    given = [0, torch.tensor(1), np.int64(1), 7, -1, None, "x", True]
    assert list(map(how.label, given)) == ["cat", "dog", "dog", 7, -1, None, "x", True]


@pytest.mark.parametrize(
    ("show", "words"),
    [
        (lambda example: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda example: 3, r"show= returned an int, not a tracin.Shown"),
        (lambda example: Shown(columns=["age"]), "AttributeError"),  # type: ignore[arg-type]
        (lambda example: Shown(tokens=5), "TypeError"),  # type: ignore[arg-type]
    ],
)
def test_a_function_that_fails_is_said_and_the_example_is_shown_all_the_same(show, words):
    shown = Showing(show=show).of(("a text", 1))

    assert shown.text == "('a text', 1)"
    assert words in str(shown.note)


def test_a_function_may_return_a_text():
    assert Showing(show=lambda example: example.upper()).of("abc").text == "ABC"


@pytest.mark.parametrize(
    "value", [Broken(), (Broken(), 1), {"x": Broken()}, [Broken()]], ids=range(4)
)
def test_what_has_no_text_of_its_own_is_named(value):
    assert "Broken" in str(Showing().of(value))


def test_the_text_of_huge_values_stays_short():
    values = ["a" * 10**6, list(range(10**6)), {at: at for at in range(10**5)}, 10**4000]

    assert max(len(brief(value)) for value in values) < 400


def test_explanations_show_what_the_examples_are():
    train = ["one", "two", "three"]

    (shown,) = explanations().show(train, ["first", "second"])

    assert str(shown).splitlines()[0] == "query 1: second"
    assert [each.text for each in shown.proponents] == train
    assert "proponent" in str(shown)
    assert "three" in str(shown)


def test_queries_without_data_have_their_ids_alone():
    (shown,) = explanations().show(["one", "two", "three"])

    assert shown.query is None
    assert str(shown).startswith("query 1\n")


def test_suspects_show_their_rows():
    suspects = Suspects(
        np.array(["b", "a"], dtype=object),
        np.array([1, 0]),
        np.array([0, 1]),
        np.array([1, 1]),
        {"loss": torch.tensor([2.0, 1.0])},
        "loss",
    )
    train = tracin.WithIds([("x", 1), ("y", 0)], ["a", "b"])

    rows = suspects.show(train, labels=["no", "yes"])

    assert list(map(str, rows)) == ["[no] y", "[yes] x"]


def test_other_data_is_refused():
    with pytest.raises(DataError, match=r"holds 2 examples, .* one at position 2"):
        explanations().show(["one", "two"])
    with pytest.raises(DataError, match="has the id a at position 0, but the result has 0 there"):
        explanations().show(tracin.WithIds(["x", "y", "z"], ["a", "b", "c"]))


def test_a_file_that_is_gone_is_said_and_random_numbers_stay_the_users():
    torch.manual_seed(1)
    before = torch.get_rng_state()

    (shown,) = explanations(6).show(Augmented())

    assert torch.get_rng_state().equal(before)
    assert shown.proponents[3].label == "text 3"
    assert "OSError: file is gone" in str(shown.proponents[4].note)


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ({"Latitude": 37.774, "Longitude": -122.419, "rooms": 4}, "37.77 N, 122.42 W rooms: 4"),
        ({"lat": np.float32(-33.5), "lon": torch.tensor(151.0)}, "33.50 S, 151.00 E"),
        ({"lat": 3700.0, "lon": 2.0}, "lat: 3700, lon: 2"),
        ({"lat": "north", "lon": 2.0}, "north lon: 2"),
        ({"lat": 1.0}, "lat: 1"),
    ],
    ids=["names", "numbers", "no degrees", "words", "half"],
)
def test_a_place_is_said_in_degrees(example, expected):
    assert str(Showing().of(example)) == expected


def test_names_of_classes_may_be_by_number_but_not_a_word():
    how = Showing(labels={0: "cat", 7: "dog"})
    assert (how.label(7), how.label(3)) == ("dog", 3)
    with pytest.raises(QueryError, match="names of all classes"):
        Showing(labels="cat")
