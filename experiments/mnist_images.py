"""MNIST's own files, read as they are."""

import gzip
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.real_data import downloaded, held
from tracin.errors import DataError

SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}
MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
BYTES = 0x08  # idx's code for unsigned bytes


@dataclass(frozen=True, eq=False)
class Images:
    """Training and test images with the classes they show.

    Attributes:
        train_images: [train, 28, 28], from 0 to 1.
        train_labels: [train].
        test_images: [test, 28, 28], from 0 to 1.
        test_labels: [test].
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def open_mnist() -> Images:
    """All of MNIST: from `mnist` in the folder that TRACIN_DATA names, or else downloaded.

    Raises:
        DataError: A file is missing, cannot be downloaded, or is not what its name says.
    """
    folder = held("mnist")
    files = {name: _path(folder, file) for name, file in FILES.items()}
    arrays = {name: torch.from_numpy(_read_idx(path)) for name, path in files.items()}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{FILES[f'{part}_images']} holds {list(images.shape)} and "
                f"{FILES[f'{part}_labels']} {list(labels.shape)}: one label an image is needed."
            )
    return Images(
        arrays["train_images"].float() / 255,
        arrays["train_labels"].long(),
        arrays["test_images"].float() / 255,
        arrays["test_labels"].long(),
    )


def first(images: Images, count: int) -> Images:
    """With fewer training images."""
    return replace(
        images,
        train_images=images.train_images[:count],
        train_labels=images.train_labels[:count],
    )


def _path(folder: Path | None, file: str) -> Path:
    if folder is None:
        return downloaded(SOURCE + file, f"md5:{MD5[file]}")
    if not (folder / file).is_file():
        raise DataError(f"{folder} lacks {file}. {_where_to_get(folder)}")
    return folder / file


def _read_idx(path: Path) -> np.ndarray:
    """An array of bytes: two zeros, a type, the number of axes, their lengths, the numbers."""
    try:
        content = gzip.decompress(path.read_bytes())
        zeros, kind, axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{axes}I", content, 4)
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"{path} is damaged ({error}). {_where_to_get(path.parent)}") from error
    numbers = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if (zeros, kind) != (0, BYTES) or numbers.size != np.prod(shape):
        raise DataError(f"{path} is no idx file of bytes. {_where_to_get(path.parent)}")
    # A copy: PyTorch wants memory that may be written to.
    return numbers.reshape(shape).copy()


def _where_to_get(folder: Path) -> str:
    return (
        f"Put MNIST's four files ({', '.join(FILES.values())}), which are at {SOURCE}, into "
        f"{folder}, or unset TRACIN_DATA to have them downloaded."
    )
