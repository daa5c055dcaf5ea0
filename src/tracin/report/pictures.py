"""Pictures as PNG data URIs, by the standard library alone: a report asks for nothing outside."""

import base64
import struct
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.plain_text import a_kind
from tracin.results.shown import has_channels_last, picture_size

SIDE = 64  # pixels of a picture's longer side, at most
LARGEST = 1 << 26  # numbers of a picture that are read


def data_uri(image: Any, side: int = SIDE) -> str:
    """A picture as a small PNG, in a URI that an `<img>` shows.

    Large pictures are made smaller by averaging. Small ones are enlarged by repeating pixels, since
    printers smooth what a screen is told to leave sharp. Numbers are taken for brightness from 0 to
    1, or from 0 to 255 if they are whole or reach beyond 1; others are stretched between the
    picture's own extremes, as are pictures that were normalised for a model.

    Args:
        image: A tensor or array, or a PIL image; as in `tracin.Shown`.
        side: Pixels of the longer side, at most.

    Raises:
        ValueError: It is no picture, it has no pixels, or too many.

    Example:
        >>> data_uri(torch.zeros(2, 2), 2)[:40]
        'data:image/png;base64,iVBORw0KGgoAAAANSU'
    """
    return "data:image/png;base64," + base64.b64encode(png(scaled(pixels(image), side))).decode()


def pixels(image: Any) -> Tensor:
    """A picture as bytes: uint8 [1 or 3, height, width]."""
    if hasattr(image, "convert"):  # a PIL image
        if image.size[0] * image.size[1] * 3 > LARGEST:
            raise ValueError(f"the picture has {image.size[0]} x {image.size[1]} pixels")
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, Tensor):
        numbers = image.detach().cpu()
    elif isinstance(image, np.ndarray) and image.dtype.kind in "buif":
        numbers = torch.from_numpy(
            np.array(image, dtype=image.dtype.newbyteorder("="), order="C", copy=True)
        )
    else:
        raise ValueError(f"a picture is a tensor, an array or a PIL image, not {a_kind(image)}")
    size = picture_size(tuple(numbers.shape))
    if size is None or 0 in size or numbers.numel() > LARGEST:
        raise ValueError(
            f"a picture is [height, width] or [3, height, width], not {list(numbers.shape)}"
        )
    if numbers.ndim == 2:
        numbers = numbers[None]
    elif has_channels_last(tuple(numbers.shape)):
        numbers = numbers.permute(2, 0, 1)
    return _as_bytes(numbers[:3])  # a fourth channel says how solid a pixel is


def scaled(image: Tensor, side: int) -> Tensor:
    """The picture with its longer side at most `side` pixels, and at least half of that."""
    height, width = image.shape[1:]
    larger = max(height, width)
    if larger > side:
        size = max(1, round(height * side / larger)), max(1, round(width * side / larger))
        smaller = F.adaptive_avg_pool2d(image.float()[None], size)[0]
        return smaller.round().to(torch.uint8)
    times = max(1, side // larger)
    return image.repeat_interleave(times, 1).repeat_interleave(times, 2)


def png(image: Tensor) -> bytes:
    """A PNG file of uint8 [1 or 3, height, width].

    The format: https://www.w3.org/TR/png-3/
    """
    channels, height, width = image.shape
    rows = image.permute(1, 2, 0).reshape(height, width * channels)
    # Each row begins with the number of its filter: 0, none.
    raw = F.pad(rows, (1, 0)).contiguous().numpy().tobytes()
    kind = 2 if channels == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + checksum


def _as_bytes(numbers: Tensor) -> Tensor:
    if numbers.dtype == torch.uint8:
        return numbers.contiguous()
    if numbers.dtype == torch.bool:
        return numbers.to(torch.uint8) * 255
    is_whole = not numbers.is_floating_point()
    values = numbers.double().nan_to_num(0.0, 0.0, 0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1 and not is_whole:
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) / ((high - low) or 1.0) * 255
    return values.round().to(torch.uint8)
