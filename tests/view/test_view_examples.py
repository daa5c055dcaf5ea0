"""Pictures of any origin: decoded, encoded again, never passed on."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from served import saved

from tracin import DecisionError, OutputError
from tracin.report.pictures import pixels
from tracin.view import save_examples
from tracin.view.examples import read_pack, shown_picture


def decoded(content):
    return Image.open(io.BytesIO(content))


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


RED = np.zeros((4, 6, 3), np.uint8) + np.array([200, 0, 0], np.uint8)


@pytest.mark.parametrize(
    "picture",
    [
        RED,
        RED / 255,
        RED.transpose(2, 0, 1),
        torch.from_numpy(RED.transpose(2, 0, 1) / 255).float(),
        Image.fromarray(RED),
        encoded(Image.fromarray(RED)),
        encoded(Image.fromarray(RED), "JPEG", quality=95),
        encoded(Image.fromarray(RED).convert("P")),
        encoded(Image.fromarray(RED).convert("CMYK"), "JPEG", quality=95),
    ],
    ids=["bytes", "floats", "channels", "tensor", "pillow", "png", "jpeg", "palette", "cmyk"],
)
def test_pictures_come_out_as_they_went_in(tmp_path, opened, picture):
    save_examples(saved(tmp_path), pictures=[picture] * 8)
    client = opened(tmp_path)
    viewer = client.viewer

    assert client.rows()["rows"][0]["picture"] is True
    shown = decoded(viewer.examples.picture(3, 64)).convert("RGB")

    assert shown.size == (64, 43)
    assert np.abs(np.asarray(shown)[20, 30].astype(int) - [200, 0, 0]).max() < 25
    assert viewer.row(3)["picture"]


@pytest.mark.parametrize("shape", [(5, 5), (1, 5, 5), (5, 5, 1)])
def test_grey_pictures_have_one_channel_or_none(tmp_path, opened, shape):
    save_examples(saved(tmp_path), pictures=np.full((8, *shape), 0.5))

    shown = decoded(opened(tmp_path).viewer.examples.picture(0, 64)).convert("L")

    assert abs(int(np.asarray(shown)[30, 30]) - 128) < 6


@pytest.mark.parametrize(
    "numbers",
    [[0.0, 0.5, 1.0], [0.0, 100.0, 255.0], [-2.0, 0.0, 2.0], [0, 100, 200]],
    ids=["to 1", "to 255", "normalised", "whole"],
)
def test_numbers_become_brightness_as_in_a_report(tmp_path, opened, numbers):
    picture = torch.tensor([numbers] * 3).repeat_interleave(4, 0).repeat_interleave(4, 1)

    save_examples(saved(tmp_path), pictures=[picture] * 8)

    shown = decoded(opened(tmp_path).viewer.examples.picture(0, 64)).convert("L")
    expected = pixels(picture)[0].numpy()
    for column in (1, 5, 9):
        found = np.asarray(shown)[32, int((column + 0.5) * 64 / 12)]
        assert abs(int(found) - int(expected[1, column])) < 8


FRAME = Image.new("RGB", (2, 2))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"no picture",
        SVG,
        EPS,
        encoded(Image.fromarray(RED))[:40],
        encoded(Image.new("1", (3, 3))),
        encoded(Image.new("LA", (2, 2))),
        encoded(Image.new("RGB", (4000, 1))),
        encoded(FRAME, "GIF", save_all=True, append_images=[FRAME]),
        encoded(Image.new("I;16", (2, 2))),
    ],
)
@pytest.mark.parametrize("side", [64, 256])
def test_whatever_it_is_a_small_picture_comes_out(content, side):
    shown = shown_picture(content, side)

    assert shown[:4] == b"RIFF"
    assert b"<script" not in shown
    assert max(decoded(shown).size) == side


def test_a_picture_too_large_to_decode_is_a_grey_tile(monkeypatch):
    for size in ((11, 10), (100, 100)):  # one that Pillow warns of, and one that it refuses
        with monkeypatch.context() as lower:
            lower.setattr(Image, "MAX_IMAGE_PIXELS", 100)
            shown = shown_picture(encoded(Image.new("RGB", size, (255, 0, 0))), 64)
        assert np.abs(np.asarray(decoded(shown).convert("RGB")).astype(int) - 128).max() < 4


def test_what_cannot_be_packed_is_refused(tmp_path):
    with pytest.raises(OutputError, match="give pictures, texts, or both"):
        save_examples(tmp_path)
    with pytest.raises(OutputError, match=r"got \{'text': 2, 'positions': 1\}"):
        save_examples(tmp_path, texts=["a", "b"], positions=[0])
    with pytest.raises(OutputError, match=r"not \[2, 2, 2, 2\]"):
        save_examples(tmp_path, pictures=np.zeros((1, 2, 2, 2, 2)))
    for empty in (np.zeros((0, 0)), Image.new("RGB", (0, 0))):
        with pytest.raises(OutputError, match=r"Picture 1 cannot be encoded .* Pass None"):
            save_examples(tmp_path, pictures=[RED, empty])
    with pytest.raises(OutputError, match="Cannot write"):
        save_examples(tmp_path / "missing", texts=["a"])


def test_texts_that_are_no_utf_8_are_spelled_out(tmp_path):
    save_examples(tmp_path, texts=["half \ud800 character", "nul\0"])

    assert read_pack(tmp_path / "examples.parquet").texts == ["half \\ud800 character", "nul\0"]


def test_a_damaged_pack_is_explained(tmp_path, opened):
    (saved(tmp_path) / "examples.parquet").write_bytes(b"PAR1")

    with pytest.raises(DecisionError, match=r"examples.parquet cannot be read .*save_examples"):
        opened(tmp_path)
