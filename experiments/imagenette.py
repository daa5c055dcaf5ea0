"""Imagenette: 13,394 images of ten ImageNet classes, at 64 x 64 pixels."""

import io
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.real_data import downloaded, held
from tracin.errors import DataError

SIDE = 64
# The class of each folder, as ImageNet numbers its 1,000 classes.
# https://github.com/fastai/imagenette#imagenette-1
CLASSES = {
    "n01440764": (0, "tench"),
    "n02102040": (217, "English springer"),
    "n02979186": (482, "cassette player"),
    "n03000684": (491, "chain saw"),
    "n03028079": (497, "church"),
    "n03394916": (566, "French horn"),
    "n03417042": (569, "garbage truck"),
    "n03425413": (571, "gas pump"),
    "n03445777": (574, "golf ball"),
    "n03888257": (701, "parachute"),
}
NAMES = dict(CLASSES.values())
# The checksum is the one of
# https://github.com/pytorch/vision/blob/main/torchvision/datasets/imagenette.py
URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
CHECKSUM = "md5:e793b78cc4c9e9a4ccc0c1155377a412"


@dataclass(frozen=True, eq=False)
class Imagenette:
    """Images as uint8 [images, 64, 64, 3] with ImageNet's labels [images].

    Attributes:
        train_images: 9,469 of them, in the order of their names.
        train_labels: Among 1,000 classes.
        val_images: 3,925 of them.
        val_labels: As the training images'.
    """

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor


def open_imagenette(every: int = 1) -> Imagenette:
    """Read the images from the folder of data, or download them.

    Args:
        every: Read only each so many-th file.

    Raises:
        DataError: They could not be downloaded, or a file is not among the ten classes.
    """
    folder = held("imagenet")
    file = None if folder is None else folder / "imagenette_64.zip"
    if file is not None and file.is_file():
        return imagenette_of(islice(in_zip(file), 0, None, every))
    return imagenette_of(islice(in_tar(downloaded(URL, CHECKSUM)), 0, None, every))


def in_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    """The images of an archive of train/CLASS/NAME.JPEG: name and content."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".JPEG"):
                yield name, archive.read(name)


def in_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """The images of an archive of imagenette2-160/train/CLASS/NAME.JPEG: name and content."""
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".JPEG") else None
            if file is not None:
                yield member.name.partition("/")[2], file.read()


def imagenette_of(files: Iterator[tuple[str, bytes]]) -> Imagenette:
    """Images and labels of named files, whatever their order.

    Raises:
        DataError: A file is not in train or val, or of another class.
    """
    found: dict[str, dict[str, np.ndarray]] = {"train": {}, "val": {}}
    for name, content in files:
        part, folder, _ = name.split("/")
        if part not in found or folder not in CLASSES:
            raise DataError(
                f"Imagenette has train and val of {', '.join(CLASSES)}; got {name}. Remove the "
                "file, or use another copy."
            )
        found[part][name] = pixels_of(content)
    pairs = []
    for images in found.values():
        names = sorted(images)
        labels = [CLASSES[name.split("/")[1]][0] for name in names]
        pairs += [torch.from_numpy(np.stack([images[name] for name in names]))]
        pairs += [torch.tensor(labels)]
    return Imagenette(*pairs)


def pixels_of(content: bytes) -> np.ndarray:
    """A file's image, the square in its middle: uint8 [64, 64, 3]."""
    with Image.open(io.BytesIO(content)) as image:
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        square = image.convert("RGB").crop((left, top, left + side, top + side))
        return np.array(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
