"""Sounds become WAV files in a page, and a line of words on a screen."""

import base64
import io
import wave

import numpy as np
import pytest
import torch

import tracin
from tracin.report.card import card_of
from tracin.report.sounds import sound_uri
from tracin.results.shown import Showing, Shown


def played(uri: str) -> tuple[np.ndarray, int]:
    head, data = uri.split(",")
    assert head == "data:audio/wav;base64"
    with wave.open(io.BytesIO(base64.b64decode(data))) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return samples / 32767, file.getframerate()


def test_a_wav_holds_the_samples():
    samples = torch.sin(torch.arange(800) / 10)

    found, rate = played(sound_uri((samples, 8000)))

    assert rate == 8000
    np.testing.assert_allclose(found, samples, atol=1e-4)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([[1.0, 0.0], [0.0, 0.0]], [0.5, 0.0]),
        (np.array([100, -200], dtype=np.int16), [0.5, -1.0]),
        ([0.0, 5.0], [0.0, 1.0]),
        ([0.25, float("nan")], [0.25, 0.0]),
    ],
    ids=["channels", "whole", "loud", "nan"],
)
def test_numbers_become_one_channel_within_its_range(samples, expected):
    found, _ = played(sound_uri((samples, 8000)))

    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_long_and_fast_sounds_are_cut_and_averaged():
    found, rate = played(sound_uri((torch.ones(48_000 * 12), 48_000)))

    assert (len(found), rate) == (160_000, 16_000)


def test_a_sound_is_found_by_its_type_and_said_in_words():
    example = {"audio": {"array": np.zeros(24_000), "sampling_rate": 16_000}, "label": 1}

    shown = Showing(labels=["dog", "siren"]).of(example)

    assert str(shown) == "[siren] (a sound of 1.5 s at 16,000 Hz)"
    card = card_of(shown, "example 3", 64)
    assert card.audio is not None
    assert card.audio.startswith("data:audio/wav")


def test_what_is_no_sound_is_said():
    shown = Showing().of(Shown(audio=(np.zeros((2, 2, 2)), 8000)))
    card = card_of(Shown(audio=(np.zeros(0), 8000)), "example 3", 64)

    assert "the samples of a sound are [time] or [channels, time], not [2, 2, 2]" in str(shown.note)
    assert card.audio is None
    assert card.note == "the sound cannot be played: the sound has no samples"


def test_a_report_plays_sounds(tmp_path):
    model = torch.nn.Linear(100, 2)
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    train = torch.rand(4, 100), torch.tensor([0, 1, 0, 1])

    def show(example):
        return Shown(audio=(example[0], 8000), label=example[1])

    tracin.write_report(
        tmp_path / "a.html", run.explain(train, train, k=1), train=train, queries=train, show=show
    )

    page = (tmp_path / "a.html").read_text()
    assert page.count('<audio controls preload="none" src="data:audio/wav;base64,') == 12
    assert "media-src data:;" in page
