"""CIFAR-10's images, and the labels that people gave them (CIFAR-10N), read as they are."""

import lzma
import pickle
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.real_data import downloaded, held
from tracin.errors import DataError

# The binary version, whose records are plain bytes: no pickle runs.
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CHECKSUM = "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32  # one byte of label, then the colours one after the other

HELD = ("train10k_x.npy.xz", "test2k_x.npy.xz", "labels.npz")
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
WHOLE = 50_000

# Mean and standard deviation of each colour over the training images, from 0 to 1.
MEAN, SPREAD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, eq=False)
class Images:
    """Training and test images with the classes they show.

    Attributes:
        train: [train, 3, 32, 32], each colour shifted to mean 0 and scaled to spread 1.
        labels: [train].
        test: [test, 3, 32, 32].
        test_labels: [test].
    """

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def about(self) -> str:
        """How many there are, and whether that is all of CIFAR-10."""
        kind = "" if len(self.labels) == WHOLE else "a subset of "
        return (
            f"{kind}CIFAR-10: {len(self.labels):,} training and {len(self.test_labels):,} test "
            "images"
        )

    def to(self, device: str) -> "Images":
        """The same images in a device's memory."""
        moved = {name: tensor.to(device) for name, tensor in vars(self).items()}
        return replace(self, **moved)


def open_cifar10(train: int = WHOLE, test: int = WHOLE) -> Images:
    """The first images, from the folder `cifar10` where TRACIN_DATA has one, or from their maker.

    Args:
        train: How many training images at most; the folder may hold fewer.
        test: How many test images at most.

    Raises:
        DataError: A file is missing, damaged, or cannot be downloaded.
    """
    folder = held("cifar10")
    pixels, labels, test_pixels, test_labels = (
        _from_archive(downloaded(URL, CHECKSUM))
        if folder is None
        else _from_folder(folder, train, test)
    )
    return Images(
        _scaled(pixels[:train]), labels[:train], _scaled(test_pixels[:test]), test_labels[:test]
    )


def _from_folder(folder: Path, train: int, test: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    missing = [name for name in HELD if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}. Put the files there, or move the folder away to "
            "have CIFAR-10 downloaded."
        )
    try:
        pixels = _unpacked(folder / HELD[0], train)
        test_pixels = _unpacked(folder / HELD[1], test)
        with np.load(folder / HELD[2]) as found:
            labels, test_labels = (
                torch.from_numpy(found[name]).long() for name in ("train", "test")
            )
    except (OSError, EOFError, KeyError, ValueError, lzma.LZMAError) as error:
        raise DataError(f"A file of {folder} is damaged: {error}. Copy it again.") from error
    return pixels, labels, test_pixels, test_labels


def _unpacked(path: Path, most: int) -> Tensor:
    """[images, 3, 32, 32], from bytes [images, 32, 32, 3] in the file; the rest is not unpacked."""
    with lzma.open(path) as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        count = min(most, shape[0])
        content = file.read(count * (RECORD - 1))
    array = np.frombuffer(content, np.uint8).reshape(count, *shape[1:])
    return torch.from_numpy(array.copy()).permute(0, 3, 1, 2)


def _from_archive(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found: dict[str, Tensor] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = Path(member.name).name
            file = archive.extractfile(member) if name in (*TRAIN_FILES, TEST_FILE) else None
            if file is not None:
                found[name] = records(file.read())
    missing = {*TRAIN_FILES, TEST_FILE} - set(found)
    if missing:
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}. Delete it to load it again.")
    train, test = torch.cat([found[name] for name in TRAIN_FILES]), found[TEST_FILE]
    return (
        train[:, 1:].unflatten(1, SHAPE),
        train[:, 0].long(),
        test[:, 1:].unflatten(1, SHAPE),
        test[:, 0].long(),
    )


def records(content: bytes) -> Tensor:
    """The records of a file of the binary version: [images, 3073], bytes.

    Raises:
        DataError: It does not consist of whole records.
    """
    if not content or len(content) % RECORD:
        raise DataError(
            f"A file of CIFAR-10 holds records of {RECORD} bytes; {len(content)} bytes came. "
            "Delete the archive to load it again."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).unflatten(0, (-1, RECORD))


def _scaled(pixels: Tensor) -> Tensor:
    mean, spread = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, SPREAD))
    return (pixels.float() / 255 - mean) / spread


def human_labels(path: Path, column: str, right: Tensor) -> Tensor:
    """The labels that people gave the first training images: [train].

    J. Wei, Z. Zhu, H. Cheng, T. Liu, G. Niu and Y. Liu, "Learning with noisy labels revisited: a
    study using real-world human annotations", 2022, https://arxiv.org/abs/2110.12088.

    Args:
        path: CIFAR-10_human.pt of https://github.com/UCSC-REAL/cifar-10-100n, or a .npy file with
            one whole number per image.
        column: Which labels of the .pt file: "aggre_label", "random_label1", "worse_label", ...
        right: [train]; CIFAR-10's own labels, to see that both have the same order.

    Raises:
        DataError: The file cannot be read, has no such column, or has another order.
    """
    try:
        values = _column(path, column)
    except (OSError, ValueError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{path} cannot be read as labels ({error}). Give CIFAR-10_human.pt, or a .npy file "
            "with one whole number per training image."
        ) from error
    labels = torch.as_tensor(np.asarray(values).astype(np.int64))
    if labels.ndim != 1 or len(labels) < len(right):
        raise DataError(
            f"{path} holds {list(labels.shape)}; one label per training image is needed, at least "
            f"[{len(right)}]."
        )
    labels = labels[: len(right)]
    agreeing = float((labels == right).double().mean())
    if agreeing < 0.5:
        raise DataError(
            f"The labels of {path} agree with {agreeing:.0%} of CIFAR-10's: they are in another "
            "order. Give those in the order of the original files (data_batch_1 first)."
        )
    return labels


def _column(path: Path, name: str) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    with torch.serialization.safe_globals(_array_globals()):
        columns = torch.load(path, map_location="cpu", weights_only=True)
    if name not in columns:
        raise DataError(f"{path} has no column {name!r}; it has {', '.join(sorted(columns))}.")
    return columns[name]


def _array_globals() -> list[Any]:
    """What NumPy's arrays need to be read without running other code."""
    # What an array says of itself when it is pickled: the name has changed with NumPy 2.
    rebuilt = np.zeros(1).__reduce__()[0]
    return [
        (rebuilt, "numpy.core.multiarray._reconstruct"),
        (rebuilt, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.int64)),
        (_encode, "_codecs.encode"),
    ]


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)
