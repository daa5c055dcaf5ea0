"""Pictures become small PNG files, whatever their numbers."""

import base64
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tracin.report.card import card_of
from tracin.report.pictures import data_uri, pixels, png, scaled
from tracin.results.shown import Shown


def opened(uri: str) -> Image.Image:
    from io import BytesIO

    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (3, 5, 7)])
def test_a_png_holds_the_pixels(shape):
    image = torch.randint(256, shape, dtype=torch.uint8)
    expected = image.reshape(-1, 5, 7).permute(1, 2, 0).squeeze(-1).numpy()

    file = png(pixels(image))

    from io import BytesIO

    assert (np.asarray(Image.open(BytesIO(file))) == expected).all()


def test_channels_may_come_last_and_a_fourth_is_left_out():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)

    assert (pixels(image).permute(1, 2, 0).numpy() == image[:, :, :3]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([0.0, float("nan"), float("inf")], [0, 0, 0]),
        ([0, 1, 2], [0, 1, 2]),
        ([False, True, True], [0, 255, 255]),
        ([3.0, 3.0, -3.0], [255, 255, 0]),
        ([-2.0, -2.0, -2.0], [0, 0, 0]),
    ],
)
def test_numbers_become_brightness(values, expected):
    assert pixels(torch.tensor([values] * 4)[None])[0, 0].tolist() == expected


def test_large_pictures_are_averaged_and_small_ones_repeated():
    large = torch.full((1, 300, 200), 7, dtype=torch.uint8)
    small = torch.tensor([[[1, 2]]], dtype=torch.uint8)

    assert scaled(large, 64).shape == (1, 64, 43)
    assert scaled(large, 64).unique().tolist() == [7]
    assert scaled(small, 8)[0].tolist() == [[1] * 4 + [2] * 4] * 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F", "YCbCr"])
def test_pil_images_of_any_mode_are_drawn(mode):
    assert opened(data_uri(Image.new(mode, (9, 5)))).size == (63, 35)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", ">f4", "f2", "i8", "?"])
def test_arrays_of_any_kind_of_number_are_drawn(dtype):
    assert opened(data_uri(np.ones((8, 8), dtype)[::-1])).size == (64, 64)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(0, 0),
        torch.zeros(3, 0, 5),
        torch.zeros(2, 2, 2, 2),
        torch.zeros(7),
        np.zeros((5, 5), dtype=object),
        "picture.png",
        Image.new("L", (0, 0)),
        torch.zeros(4, 4, dtype=torch.complex64),
        torch.zeros(1, 1).expand(20_000, 20_000),
    ],
    ids=range(9),
)
def test_what_is_no_picture_becomes_a_note(image):
    card = card_of(Shown(image=image), "example 1", 64)

    assert card.image is None
    assert card.note is not None
    assert card.note.startswith("the picture cannot be shown: ")


def test_a_truncated_file_becomes_a_note(tmp_path):
    Image.new("RGB", (50, 50), "red").save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])

    with Image.open(tmp_path / "cut.png") as image:
        card = card_of(Shown(image=image), "example 1", 64)

    assert card.image is None
    assert card.note is not None


def test_the_first_picture_of_an_animation_is_drawn(tmp_path):
    frames = [Image.new("P", (8, 8), colour) for colour in (0, 1)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])

    with Image.open(tmp_path / "moving.gif") as image:
        assert opened(data_uri(image)).size == (64, 64)


def test_a_png_is_sound_to_its_last_checksum():
    file = png(torch.zeros(1, 2, 2, dtype=torch.uint8))
    at = 8
    while at < len(file):
        (size,) = struct.unpack(">I", file[at : at + 4])
        body = file[at + 4 : at + 8 + size]
        assert struct.unpack(">I", file[at + 8 + size : at + 12 + size])[0] == zlib.crc32(body)
        at += 12 + size
    assert at == len(file)
