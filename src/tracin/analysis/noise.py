"""Wrong labels planted on purpose, to see whether a ranking finds them (paper, section 4.1)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Generator, Tensor

from tracin.analysis.arrays import cpu_tensor
from tracin.analysis.edited_data import relabelled_examples, whole_labels
from tracin.checks import is_int
from tracin.errors import DataError, LabelError, NonFiniteError, QueryError
from tracin.results.table import aligned
from tracin.results.tabular import Tabular


class Noise(ABC):
    """How a wrong label is chosen for an example that is to get one."""

    @property
    @abstractmethod
    def about(self) -> str:
        """How, in words for tables and records."""

    @abstractmethod
    def wrong(self, labels: Tensor, generator: Generator) -> Tensor:
        """A wrong label for every example: [examples], int64; -1 where no class can be wrong.

        Args:
            labels: [examples], int64; the right ones.
            generator: What random choices are drawn from.
        """


@final
@dataclass(frozen=True, eq=False)
class HighestWrong(Noise):
    """The wrong class that a model trained on right labels scores highest (paper, section 4.1).

    Such errors are harder to find than labels drawn at random: they are the ones that a trained
    model itself finds most plausible. Of equal scores the first class is taken.

    Args:
        scores: [examples, classes], logits or probabilities: a tensor or an array.
    """

    scores: Any

    @property
    def about(self) -> str:
        """How, in words."""
        return "the highest scoring wrong class"

    def wrong(self, labels: Tensor, generator: Generator) -> Tensor:
        """A wrong label for every example: [examples], int64; -1 where no class can be wrong."""
        scores = _matrix(self.scores, "Scores [examples, classes]")
        if scores.shape[1] < 2 or len(scores) != len(labels):
            raise DataError(
                "Scores [examples, classes] of at least two classes and labels [examples] are "
                f"needed; came scores {list(scores.shape)} and labels {list(labels.shape)}."
            )
        _check_range(labels, scores.shape[1])
        broken = (~scores.isfinite()).any(1).nonzero()
        if len(broken):
            raise NonFiniteError(
                f"The scores of example {int(broken[0])} are not all finite, so its highest "
                "scoring wrong label is unknown. Leave the example out, or train the model again."
            )
        return scores.scatter(1, labels[:, None], -torch.inf).argmax(1)


@final
@dataclass(frozen=True)
class UniformWrong(Noise):
    """Any wrong class, each as likely as the others: symmetric noise.

    Args:
        classes: How many classes there are.
    """

    classes: int

    def __post_init__(self) -> None:
        if not is_int(self.classes, low=2):
            raise QueryError(
                f"classes is a whole number of at least 2; {self.classes!r} was given: with one "
                "class no label is wrong."
            )

    @property
    def about(self) -> str:
        """How, in words."""
        return "any wrong class, each as likely"

    def wrong(self, labels: Tensor, generator: Generator) -> Tensor:
        """A wrong label for every example: [examples], int64; -1 where no class can be wrong."""
        _check_range(labels, self.classes)
        step = torch.randint(1, self.classes, (len(labels),), generator=generator)
        return (labels + step) % self.classes


@final
@dataclass(frozen=True, eq=False)
class ConfusionNoise(Noise):
    """A wrong class drawn by a confusion matrix, such as that of human annotators.

    The diagonal is not used: `fraction` says how many labels become wrong. Examples of a class that
    is never mistaken are never chosen.

    Args:
        matrix: [classes, classes], counts or rates: how often class (row) is taken for (column).
    """

    matrix: Any

    @property
    def about(self) -> str:
        """How, in words."""
        return "a class drawn by a confusion matrix"

    def wrong(self, labels: Tensor, generator: Generator) -> Tensor:
        """A wrong label for every example: [examples], int64; -1 where no class can be wrong."""
        off = self.mistakes()
        _check_range(labels, len(off))
        rows = off[labels]
        is_possible = rows.sum(1) > 0
        # A row of zeros has nothing to draw from; what is drawn here in its place is not used.
        rows = torch.where(is_possible[:, None], rows, torch.ones_like(rows))
        drawn = torch.multinomial(rows, 1, generator=generator)[:, 0]
        return torch.where(is_possible, drawn, -1)

    def mistakes(self) -> Tensor:
        """The matrix with a diagonal of zeros: float64 [classes, classes]."""
        matrix = _matrix(self.matrix, "A confusion matrix [classes, classes]")
        is_square = matrix.shape[0] == matrix.shape[1] >= 2
        if not is_square or not bool((matrix.isfinite() & (matrix >= 0)).all()):
            raise DataError(
                "A confusion matrix is [classes, classes], of at least two classes, with counts or "
                f"rates that are not negative; {list(matrix.shape)} came, from "
                f"{float(matrix.min()):g} to {float(matrix.max()):g}."
            )
        return matrix - torch.diag(matrix.diag())


@final
@dataclass(frozen=True, eq=False, repr=False)
class NoisyLabels(Tabular):
    """Labels of which some were made wrong, with the truth and a record of what was done.

    Attributes:
        labels: [examples], int64; the labels to train on.
        right: [examples], int64; as they were given.
        is_noisy: bool [examples]; the planted mask: where the two differ.
        about: How wrong labels were chosen, in words.
        fraction: The share of labels asked to be wrong.
        seed: What decided which; None for a generator of the caller's.
    """

    labels: Tensor
    right: Tensor
    is_noisy: Tensor
    about: str
    fraction: float
    seed: int | None

    def __len__(self) -> int:
        return len(self.labels)

    def put_into(self, data: Any, key: int | str = 1) -> Any:
        """The same examples under the noisy labels, as data of the same kind.

        Args:
            data: Tensors in a tuple, list or dict, or a map-style dataset.
            key: Where an example has its label: the place in a tuple, or the key in a dict.

        Raises:
            DataError: There is no such place, or another number of examples.
        """
        return relabelled_examples(data, self.labels, key)

    def fixed(self, positions: Tensor) -> Tensor:
        """The labels with those at some positions put right: [examples]."""
        labels = self.labels.clone()
        labels[positions] = self.right[positions]
        return labels

    def columns(self) -> dict[str, np.ndarray]:
        """One row per pair of classes: how many labels of the first became the second."""
        pairs = torch.stack([self.right, self.labels], 1)[self.is_noisy]
        kinds, counts = torch.unique(pairs, dim=0, return_counts=True)
        kinds = kinds.reshape(-1, 2)
        return {
            "right": kinds[:, 0].numpy(),
            "noisy": kinds[:, 1].numpy(),
            "examples": counts.numpy(),
        }

    def __str__(self) -> str:
        columns = self.columns()
        order = np.argsort(-columns["examples"], kind="stable")[:SHOWN]
        rows = list(zip(*(each[order].tolist() for each in columns.values()), strict=True))
        count = int(self.is_noisy.sum())
        seed = "" if self.seed is None else f", seed {self.seed}"
        head = f"{count} of {len(self)} labels made wrong: {self.about}{seed}"
        more = len(columns["right"]) - len(rows)
        tail = f"\n... {more} more pairs" if more else ""
        return f"{head}\n{aligned(list(columns), rows)}{tail}"


SHOWN = 10


def noisy_labels(
    labels: Any, noise: Noise, fraction: float = 0.1, *, seed: int | Generator
) -> NoisyLabels:
    """Make the labels of a random part of the examples wrong.

    Args:
        labels: [examples]; the right classes, as a tensor, array or list; stays as it is.
        noise: How wrong labels are chosen: `HighestWrong`, the paper's protocol, `UniformWrong` or
            `ConfusionNoise`.
        fraction: The share of examples to give a wrong label, rounded to whole examples.
        seed: A number, or a CPU generator, which decides which examples, and any random choice.

    Returns:
        The new labels, the mask of what was changed, and a record; on the CPU.

    Raises:
        DataError: Shapes do not fit together, or labels are no whole numbers.
        LabelError: A label is not a whole number from 0 to classes - 1.
        NonFiniteError: A score is NaN or infinite.
        QueryError: The noise or the seed is none, the fraction lies outside 0 to 1, or more
            examples are to be wrong than have a wrong class.

    Example:
        >>> import torch
        >>> from tracin.analysis import HighestWrong, noisy_labels
        >>> logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
        >>> noisy = noisy_labels([0, 2], HighestWrong(logits), fraction=1.0, seed=0)
        >>> noisy.labels, noisy.is_noisy
        (tensor([1, 1]), tensor([True, True]))
        >>> noisy.put_into((torch.zeros(2, 1), torch.tensor([0, 2])))[1]
        tensor([1, 1])
    """
    right = whole_labels(labels)
    if not isinstance(noise, Noise):
        raise QueryError(
            "noise says how wrong labels are chosen, such as UniformWrong(classes=10) or "
            f"HighestWrong(scores); {noise!r} was given."
        )
    if not isinstance(seed, Generator) and not is_int(seed):
        raise QueryError(f"seed is a whole number or a torch.Generator; {seed!r} was given.")
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise QueryError(f"fraction is a share from 0 to 1; {fraction!r} was given.")
    if not 0 <= fraction <= 1:
        raise QueryError(
            f"fraction is a share from 0 to 1; {fraction!r} was given. Write 10 % as 0.1."
        )
    generator = seed if isinstance(seed, Generator) else torch.Generator().manual_seed(seed)
    count = round(fraction * len(right))
    order = torch.randperm(len(right), generator=generator)
    wrong = noise.wrong(right, generator)
    order = order[wrong[order] >= 0]
    if count > len(order):
        raise QueryError(
            f"{count} labels are to be made wrong, but only {len(order)} of the {len(right)} "
            "examples are of a class that is ever mistaken. Lower the fraction."
        )
    is_noisy = torch.zeros(len(right), dtype=torch.bool)
    is_noisy[order[:count]] = True
    return NoisyLabels(
        torch.where(is_noisy, wrong, right),
        right,
        is_noisy,
        noise.about,
        float(fraction),
        None if isinstance(seed, Generator) else seed,
    )


def _matrix(given: Any, what: str) -> Tensor:
    values = cpu_tensor(given)
    if values.ndim != 2 or not values.numel():
        raise DataError(f"{what} is needed; came {list(values.shape)}.")
    return values.double()


def _check_range(labels: Tensor, classes: int) -> None:
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if len(outside):
        example = int(outside[0])
        raise LabelError(
            f"Labels lie from 0 to {classes - 1}, but example {example} has "
            f"{int(labels[example])}. Number the classes from 0, or give scores or a matrix of all "
            "of them."
        )
