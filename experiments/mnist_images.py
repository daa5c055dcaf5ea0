"""MNIST's own files, read as they are."""

import gzip
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tracin.errors import DataError

FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
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
    """All of MNIST, from the folder `mnist` in the folder that TRACIN_DATA names.

    Raises:
        DataError: The variable or a file is missing, or a file is not what its name says.
    """
    root = os.environ.get("TRACIN_DATA")
    if not root:
        raise DataError(f"TRACIN_DATA is not set. {_where_to_get('DATA')}")
    folder = Path(root).expanduser() / "mnist"
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}. {_where_to_get(root)}")
    arrays = {name: torch.from_numpy(_read_idx(folder / file)) for name, file in FILES.items()}
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


def _read_idx(path: Path) -> np.ndarray:
    """An array of bytes: two zeros, a type, the number of axes, their lengths, the numbers."""
    try:
        content = gzip.decompress(path.read_bytes())
        zeros, kind, axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{axes}I", content, 4)
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"{path} is damaged ({error}). {_where_to_get(path.parents[1])}") from error
    numbers = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if (zeros, kind) != (0, BYTES) or numbers.size != np.prod(shape):
        raise DataError(f"{path} is no idx file of bytes. {_where_to_get(path.parents[1])}")
    # A copy: PyTorch wants memory that may be written to.
    return numbers.reshape(shape).copy()


def _where_to_get(root: str | Path) -> str:
    return (
        f"Put MNIST's four files ({', '.join(FILES.values())}) into {root}/mnist and set "
        f"TRACIN_DATA={root}; they are at https://storage.googleapis.com/cvdf-datasets/mnist/ "
        "and at https://ossci-datasets.s3.amazonaws.com/mnist/."
    )
